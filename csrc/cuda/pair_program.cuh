// What a block prepares for one pair: the workspace, the rows of the smaller tree, the columns of the larger
// one, and where rows of numbers are stored.
#pragma once

#include "cuda/tree_plan.cuh"

namespace structloss::cuda {

// Cuts arrays out of a piece of memory; on a null pointer it only counts the bytes.
struct Carver {
    char* base;
    int64_t used = 0;

    template <class T>
    __host__ __device__ T* take(int64_t count) {
        T* begin = reinterpret_cast<T*>(base + used);
        used += (count * static_cast<int64_t>(sizeof(T)) + 15) / 16 * 16;
        return begin;
    }
};

// Room of one block, the same for every pair of a batch.
struct Capacity {
    int64_t rows;           // nodes of the smaller tree
    int64_t columns;        // nodes of the larger tree
    int64_t node_pairs;     // width_a * width_b
    int64_t stride;         // table columns, rounded up to a multiple of the threads
    int64_t backing_rows;   // rows of numbers outside shared memory
    int64_t adjoints;       // node_pairs where a posterior is wanted, else 0
    int64_t mapping_cells;  // (width_a + 1) * (width_b + 1) where a mapping is wanted, else 0
};

// A row of the dynamic program: node i of the smaller tree in any table that holds it.
struct Row {
    int left;       // leftmost leaf: the row before it is the anchor
    int nested;     // tables around that leaf
    int top;        // highest node of the left path: the last row with this anchor
    int leaf_rank;  // leaves before that leaf
};

struct Table {
    int first;
    int last;
};

// A column of the forward pass. Columns of all tables of the larger tree lie side by side; each table starts
// with the column of the empty forest, which has no node (-1).
struct Column {
    int node;
    int anchor;  // address of the column of the forest left of the node's subtree
};

// The same column in the reverse pass, which adds up by node and by anchor. Products are stored in the order
// of those sums, so that each sum is one thread's walk over neighbours.
struct ReverseColumn {
    int by_anchor;  // place of the column's product among those with its anchor; -1: the anchor is constant
    int by_node;    // place among those of its node
    int anchor_begin;  // products of this column as an anchor
    int anchor_count;
};

struct Segment {
    int first;
    int last;
    int begin;   // its column of the empty forest
    int nested;  // segments around it
};

template <class Number>
struct Workspace {
    TreeArrays row_tree, column_tree;
    int* scratch;   // 2 (larger + 1)
    Row* rows;      // (n,)
    Table* tables;  // ascending by last node, the whole tree at the end
    Segment* segments;
    int* segment_begin;  // leaf -> column of its segment's empty forest
    int* path_begin;     // (m + 1,) nodes with a leaf before this one
    int* node_begin;     // (m + 1,) columns with a node before this one
    int* interior;       // (m,) address of the column of the forest "subtree of j without j"; 0 for a leaf
    Column* columns;
    ReverseColumn* reverse_columns;
    Number* subtree;  // t(i, j), (n, m)
    Number* adjoint;  // dZ/dt / Z, (n, m)
    Number* backing;
    Number* mapping_table;
    int4* pending;

    __host__ __device__ void carve(Carver& carver, const Capacity& room) {
        carve_tree(carver, row_tree, room.rows);
        carve_tree(carver, column_tree, room.columns);
        scratch = carver.take<int>(2 * (room.columns + 1));
        rows = carver.take<Row>(room.rows);
        tables = carver.take<Table>(room.rows + 1);
        segments = carver.take<Segment>(room.columns + 1);
        segment_begin = carver.take<int>(room.columns);
        path_begin = carver.take<int>(room.columns + 1);
        node_begin = carver.take<int>(room.columns + 1);
        interior = carver.take<int>(room.columns);
        columns = carver.take<Column>(room.stride);
        reverse_columns = carver.take<ReverseColumn>(room.adjoints == 0 ? 0 : room.stride);
        subtree = carver.take<Number>(room.node_pairs);
        adjoint = carver.take<Number>(room.adjoints);
        backing = carver.take<Number>(room.backing_rows * room.stride);
        mapping_table = carver.take<Number>(room.mapping_cells);
        pending = carver.take<int4>(room.mapping_cells == 0 ? 0 : room.rows + 1);
    }

  private:
    static __host__ __device__ void carve_tree(Carver& carver, TreeArrays& tree, int64_t nodes) {
        tree.left = carver.take<int>(nodes);
        tree.node = carver.take<int>(nodes);
        tree.depth = carver.take<int>(nodes + 1);
        tree.top = carver.take<int>(nodes);
        tree.nested = carver.take<int>(nodes + 1);
    }
};

// Rows of numbers: the first in shared memory, those that do not fit at the end of the backing memory. At its
// start the reverse pass keeps the anchor rows of a table. The two never meet: kept rows are fewer than the
// leaves of the smaller tree, and the nesting of tables adds at most one row an inner node.
template <class Number>
struct RowMemory {
    Number* shared;
    int shared_rows;
    Number* backing;
    int backing_rows;
    int stride;

    __device__ Number* row(int k) const {
        return k < shared_rows ? shared + k * stride : kept(backing_rows - 1 - k);
    }
    __device__ Number* kept(int k) const { return backing + static_cast<int64_t>(k) * stride; }
};

// Rows of the tables; returns how many tables there are.
template <class Number>
__device__ inline int build_rows(Workspace<Number>& space) {
    const TreeArrays& tree = space.row_tree;
    const int threads = static_cast<int>(blockDim.x);
    int* leaf_rank = space.scratch;
    int* table_rank = space.scratch + tree.size + 1;
    for (int i = static_cast<int>(threadIdx.x); i < tree.size; i += threads) {
        leaf_rank[i] = tree.is_leaf(i);
        table_rank[i] = tree.ends_table(i);
    }
    scan_integers<false>(leaf_rank, tree.size);
    const int inner_tables = scan_integers<false>(table_rank, tree.size);
    for (int i = static_cast<int>(threadIdx.x); i < tree.size; i += threads) {
        const int left = tree.left[i];
        space.rows[i] = {left, tree.nested[left], tree.top[left], leaf_rank[left]};
        if (tree.ends_table(i)) space.tables[table_rank[i]] = {left, i};
    }
    if (threadIdx.x == 0) space.tables[inner_tables] = {0, tree.size - 1};
    __syncthreads();
    return inner_tables + 1;
}

// Columns are dealt out in runs of `steps` a thread; column c lies at address (c % steps) * threads + c /
// steps, so that neighbouring threads touch neighbouring numbers.
struct ColumnLayout {
    int width;
    int steps;

    __device__ int address(int column) const {
        return column % steps * static_cast<int>(blockDim.x) + column / steps;
    }
    __device__ int stride() const { return steps * static_cast<int>(blockDim.x); }
};

template <class Number>
__device__ inline ColumnLayout build_columns(Workspace<Number>& space, bool reverse) {
    const TreeArrays& tree = space.column_tree;
    const int threads = static_cast<int>(blockDim.x);
    const int thread = static_cast<int>(threadIdx.x);
    int* rank = space.scratch;
    int* begin = space.scratch + tree.size + 1;
    for (int j = thread; j <= tree.size; j += threads) space.path_begin[j] = 0;
    __syncthreads();
    for (int j = thread; j <= tree.size; j += threads) {
        const bool inside = j < tree.size;
        const bool ends = inside && tree.ends_table(j);
        rank[j] = ends;
        begin[j] = ends ? j - tree.left[j] + 2 : 0;
        space.node_begin[j] = inside ? tree.nested[j] + 1 : 0;
        if (inside) atomicAdd(&space.path_begin[tree.left[j]], 1);
    }
    const int inner_tables = scan_integers<false>(rank, tree.size + 1);
    const int whole = scan_integers<false>(begin, tree.size + 1);
    scan_integers<false>(space.path_begin, tree.size + 1);
    scan_integers<false>(space.node_begin, tree.size + 1);
    for (int j = thread; j < tree.size; j += threads) {
        if (!tree.ends_table(j)) continue;
        const int first = tree.left[j];
        space.segments[rank[j]] = {first, j, begin[j], tree.nested[first]};
        space.segment_begin[first] = begin[j];
    }
    if (thread == 0) {
        space.segments[inner_tables] = {0, tree.size - 1, whole, 0};
        space.segment_begin[0] = whole;
    }
    const int width = whole + tree.size + 1;
    const ColumnLayout layout{width, (width + threads - 1) / threads};
    __syncthreads();
    for (int j = thread; j < tree.size; j += threads) {
        const int first = tree.left[j];
        space.interior[j] = first == j ? 0 : layout.address(space.segment_begin[first] + j - first);
    }
    for (int c = width + thread; c < layout.stride(); c += threads) {
        space.columns[layout.address(c)] = {-1, 0};
        if (reverse) space.reverse_columns[layout.address(c)] = {-1, -1, 0, 0};
    }
    for (int s = warp_of_block(); s <= inner_tables; s += warps_of_block()) {
        fill_segment(space, layout, space.segments[s], reverse);
    }
    __syncthreads();
    return layout;
}

template <class Number>
__device__ inline void fill_segment(Workspace<Number>& space, const ColumnLayout& layout,
                                    const Segment& segment, bool reverse) {
    const TreeArrays& tree = space.column_tree;
    const int paths_before = space.path_begin[segment.first + 1];
    for (int x = lane_of_warp(); x <= segment.last - segment.first + 1; x += kWarp) {
        const int j = segment.first + x - 1;
        const int address = layout.address(segment.begin + x);
        const int left = x == 0 ? 0 : tree.left[j];
        space.columns[address] =
            x == 0 ? Column{-1, 0} : Column{j, layout.address(segment.begin + left - segment.first)};
        if (!reverse) continue;
        ReverseColumn column{-1, -1, 0, 0};
        if (x > 0) {
            column.by_node = space.node_begin[j] + segment.nested;
            if (left != segment.first) {
                const int rank = tree.depth[left] - tree.depth[j];
                column.by_anchor = segment.begin + space.path_begin[left] - paths_before + rank;
            }
            if (j < segment.last && tree.is_leaf(j + 1)) {
                column.anchor_begin = segment.begin + space.path_begin[j + 1] - paths_before;
                column.anchor_count = space.path_begin[j + 2] - space.path_begin[j + 1];
            }
        }
        space.reverse_columns[address] = column;
    }
}

}  // namespace structloss::cuda
