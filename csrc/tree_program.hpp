// What the tree-edit dynamic program does with a tree, apart from any number: the side on which to decompose
// it, its keyroot tables, the order of rows and the slots in which they live, the columns and their segments.
// Host code without a dependency, so that the CPU kernels run it directly and the CUDA ones can upload it.
//
// Notation. Nodes are numbered from 0 in post-order of the *oriented* tree; leftmost[i] is the leftmost leaf
// below i. A forest of several roots is allowed: a virtual root above it owns the last table, rows 0 ..
// size-1. Tables of one node are left out, their subtree term is closed form.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

namespace structloss {

// kMirrored reverses the order of children (the right-path decomposition); kFlattened puts the nodes in
// pre-order and forgets ancestry, which turns the tree alignment into a sequence alignment.
enum class Orientation { kAsGiven, kMirrored, kFlattened };

// Sum of the table heights in both orientations, known in O(size) before any real work.
struct TreeWork {
    int64_t as_given = 0;
    int64_t mirrored = 0;
};

// Parents of a post-order tree from its leftmost leaves (size stands for the virtual root); refuses arrays
// that no ordered forest has, so that nothing behind this function can index out of bounds.
inline void parents_from_leftmost(const int64_t* leftmost, int64_t size, std::vector<int32_t>& parent,
                                  std::vector<int32_t>& open_roots) {
    if (size > std::numeric_limits<int32_t>::max() / 2) {
        throw std::invalid_argument("a tree has " + std::to_string(size) +
                                    " nodes; at most 2^30 are supported");
    }
    parent.assign(size, static_cast<int32_t>(size));
    open_roots.clear();
    for (int64_t i = 0; i < size; ++i) {
        const int64_t first = leftmost[i];
        bool valid = first >= 0 && first <= i;
        int64_t covered = i;
        while (valid && covered > first) {
            const int32_t child = open_roots.back();
            open_roots.pop_back();
            parent[child] = static_cast<int32_t>(i);
            covered = leftmost[child];
        }
        if (!valid || covered != first) {
            throw std::invalid_argument("leftmost[" + std::to_string(i) + "] = " + std::to_string(first) +
                                        " is not the leftmost leaf of a node of a tree in post-order");
        }
        open_roots.push_back(static_cast<int32_t>(i));
    }
}

inline TreeWork tree_work(const int64_t* leftmost, int64_t size, std::vector<int32_t>& parent,
                          std::vector<int32_t>& open_roots) {
    parents_from_leftmost(leftmost, size, parent, open_roots);
    TreeWork work{size, size};
    for (int64_t i = 0; i < size; ++i) {
        const int64_t subtree = i - leftmost[i] + 1;
        const int64_t parent_leftmost = parent[i] == size ? 0 : leftmost[parent[i]];
        if (leftmost[i] != parent_leftmost) work.as_given += subtree;
        if (parent[i] != i + 1) work.mirrored += subtree;
    }
    return work;
}

// A range of nodes [first, last] whose prefixes are the rows (or columns) of one table.
struct Table {
    int32_t first;
    int32_t last;
};

struct OrientedTree {
    int32_t size = 0;
    std::vector<int32_t> leftmost;
    std::vector<int32_t> node;  // oriented position -> position in the arrays that were given
    std::vector<int32_t>
        keyroot;  // leaf -> highest node of its left path (leaf 0: the virtual root, size - 1)
    std::vector<Table>
        tables;  // ascending by last node, the table of everything at the end; empty when size is 0

    void build(const int64_t* given_leftmost, int64_t given_size, Orientation orientation) {
        parents_from_leftmost(given_leftmost, given_size, parent_, scratch_);
        size = static_cast<int32_t>(given_size);
        leftmost.resize(size);
        node.resize(size);
        if (orientation == Orientation::kAsGiven) {
            for (int32_t i = 0; i < size; ++i) {
                leftmost[i] = static_cast<int32_t>(given_leftmost[i]);
                node[i] = i;
            }
        } else {
            // The pre-order rank of a node counts the nodes left of its subtree and its ancestors.
            std::vector<int32_t>& depth = scratch_;
            depth.resize(size);
            for (int32_t i = size - 1; i >= 0; --i) depth[i] = parent_[i] == size ? 0 : depth[parent_[i]] + 1;
            for (int32_t i = 0; i < size; ++i) {
                const int32_t preorder = static_cast<int32_t>(given_leftmost[i]) + depth[i];
                if (orientation == Orientation::kFlattened) {
                    node[preorder] = i;
                    leftmost[preorder] = preorder;
                } else {
                    const int32_t position = size - 1 - preorder;
                    node[position] = i;
                    leftmost[position] = position - (i - static_cast<int32_t>(given_leftmost[i]));
                }
            }
        }
        find_tables();
    }

    // A leaf that is a keyroot by itself: it has no table.
    bool lone_leaf(int32_t i) const { return i > 0 && leftmost[i] == i && keyroot[i] == i; }

  private:
    std::vector<int32_t> parent_;
    std::vector<int32_t> scratch_;

    void find_tables() {
        keyroot.assign(size, -1);
        tables.clear();
        if (size == 0) return;
        keyroot[0] = size - 1;
        for (int32_t i = size - 1; i >= 0; --i) {
            if (keyroot[leftmost[i]] == -1) keyroot[leftmost[i]] = i;
        }
        for (int32_t i = 0; i < size; ++i) {
            const int32_t first = leftmost[i];
            if (first != 0 && first != i && keyroot[first] == i) tables.push_back({first, i});
        }
        tables.push_back({0, size - 1});
    }
};

// Columns of the row scan: for every table of the second tree one segment that starts with a boundary column
// (the empty forest) and goes on with one column a node. All segments advance together.
struct ColumnProgram {
    struct Segment {
        int32_t first;  // node of the column begin + 1
        int32_t count;
        int32_t begin;  // boundary column
    };
    int32_t width = 0;
    std::vector<Segment> segments;
    std::vector<int32_t> interior;  // node j -> column of the forest "subtree of j without j"

    void build(const OrientedTree& tree) {
        int64_t columns = 0;
        for (const Table& table : tree.tables) columns += table.last - table.first + 2;
        if (columns > std::numeric_limits<int32_t>::max()) {
            throw std::invalid_argument("the second tree needs " + std::to_string(columns) +
                                        " columns; use method=\"flattened\" for it");
        }
        segments.clear();
        interior.assign(tree.size, 0);  // a subtree of one node: any boundary column will do
        width = 0;
        for (const Table& table : tree.tables) {
            segments.push_back({table.first, table.last - table.first + 1, width});
            for (int32_t j = table.first; j <= table.last; ++j) {
                if (tree.leftmost[j] == table.first) interior[j] = width + j - table.first;
            }
            width += table.last - table.first + 2;
        }
    }
};

// Rows of all tables of the first tree in the order of the forward pass. A row needs the row before it and
// its anchor, the row just before its leftmost leaf. Rows that become anchors are *kept*; the others live in
// two slots that alternate.
struct RowProgram {
    // Kept rows are given free after their last use, or stay until the next table, or for good: the reverse
    // pass reads anchor rows only.
    enum class Storage { kRecycle, kKeepTable, kKeepAll };
    static constexpr int32_t kFirstKept =
        3;  // slot 0 is the boundary row, which all tables share; 1 and 2 alternate

    struct Row {
        int32_t node;
        int32_t slot;
        int32_t previous_slot;
        int32_t anchor_slot;
        int32_t adjoint_slot;  // where the reverse pass collects the adjoint of the anchor row; 0 = the
                               // boundary row
        bool spine;            // on the table's left path: defines the subtree terms of its node
        bool top;              // highest node of its left path: last to read the anchor row
        bool leaf;             // the anchor is the previous row
    };
    std::vector<Row> rows;
    std::vector<int32_t> table_begin;  // rows of table x: table_begin[x] .. table_begin[x + 1]
    int32_t slots = kFirstKept;
    int32_t adjoint_slots = 1;

    void build(const OrientedTree& tree, Storage storage) {
        rows.clear();
        table_begin.assign(1, 0);
        anchor_.resize(tree.size);
        adjoint_.resize(tree.size);
        free_.clear();
        slots = kFirstKept;
        adjoint_slots = 1;
        int32_t next_kept = kFirstKept;
        for (const Table& table : tree.tables) {
            if (storage == Storage::kKeepTable) next_kept = kFirstKept;
            anchor_[table.first] = 0;
            int32_t previous = 0;
            for (int32_t i = table.first; i <= table.last; ++i) {
                const int32_t leaf = tree.leftmost[i];
                int32_t slot = previous == 1 ? 2 : 1;
                if (i < table.last && tree.leftmost[i + 1] == i + 1) {
                    slot = free_.empty() ? next_kept++ : take_free();
                    anchor_[i + 1] = slot;
                }
                slots = std::max(slots, slot + 1);
                const bool spine = leaf == table.first;
                const bool top = !spine && tree.keyroot[leaf] == i;
                rows.push_back({i, slot, previous, anchor_[leaf], 0, spine, top, leaf == i});
                if (top && storage == Storage::kRecycle) free_.push_back(anchor_[leaf]);
                previous = slot;
            }
            assign_adjoint_slots(tree, table);
            table_begin.push_back(static_cast<int32_t>(rows.size()));
        }
    }

  private:
    std::vector<int32_t> anchor_;
    std::vector<int32_t> adjoint_;
    std::vector<int32_t> free_;

    int32_t take_free() {
        const int32_t slot = free_.back();
        free_.pop_back();
        return slot;
    }

    void assign_adjoint_slots(const OrientedTree& tree, const Table& table) {
        int32_t depth = 0;
        for (auto row = rows.rbegin(); row != rows.rbegin() + (table.last - table.first + 1); ++row) {
            if (row->spine) continue;
            if (row->top) adjoint_[tree.leftmost[row->node]] = ++depth;
            row->adjoint_slot = adjoint_[tree.leftmost[row->node]];
            adjoint_slots = std::max(adjoint_slots, depth + 1);
            if (row->leaf) --depth;
        }
    }
};

// The cheaper of the two decompositions and how many cells it has.
struct SideChoice {
    Orientation orientation;
    int64_t cells;
};

inline int64_t saturating_product(int64_t x, int64_t y) {
    if (x != 0 && y > std::numeric_limits<int64_t>::max() / x) return std::numeric_limits<int64_t>::max();
    return x * y;
}

inline SideChoice choose_side(const TreeWork& first, const TreeWork& second) {
    const int64_t as_given = saturating_product(first.as_given, second.as_given);
    const int64_t mirrored = saturating_product(first.mirrored, second.mirrored);
    if (mirrored < as_given) return {Orientation::kMirrored, mirrored};
    return {Orientation::kAsGiven, as_given};
}

}  // namespace structloss
