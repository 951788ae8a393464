// Batched tree alignment on a CUDA device over padded arrays. Host interface, free of CUDA headers: device
// addresses, a stream handle, and an error code that is the cudaError_t of the first call that failed (0 =
// success). Nothing here allocates, waits for the device or copies, so all of it can be captured into a
// graph.
#pragma once

#include <cstdint>

namespace structloss::cuda {

// Why a pair has no result (its value is NaN then). Written for every pair.
enum Status : int32_t {
    kOk = 0,
    kBadSizes = 1,      // outside 0 .. width
    kBadLeftmostA = 2,  // not the leftmost leaves of a forest in post-order
    kBadLeftmostB = 3,
    kBadTemperature = 4,  // not finite and > 0
    kBadDelete = 5,       // negative, NaN or infinite
    kBadInsert = 6,
    kBadRelabel = 7,      // negative or NaN
    kCostsTooLarge = 8,   // beyond the exponents of the number type
    kTooManyCells = 9,    // method "exact" and more than max_cells
    kTooManyColumns = 10  // more than table_columns
};

enum Method : int32_t { kExact = 0, kFlattened = 1, kAuto = 2 };

// Costs are row-major: relabel (batch, width_a, width_b), remove (batch, width_a), insert (batch, width_b),
// all float32 or all float64; leftmost (batch, width). Padding is never read. table_columns bounds the
// columns of the larger tree of every pair: the sum of (size + 1) over its keyroot tables of two nodes and
// more, and of the whole tree, in the orientation that is chosen; width + 1 where trees are flattened.
struct TreePairs {
    int64_t batch;
    int64_t width_a;
    int64_t width_b;
    const int64_t* leftmost_a;
    const int64_t* leftmost_b;
    const int64_t* sizes_a;
    const int64_t* sizes_b;
    const void* relabel;
    const void* remove;
    const void* insert;
    int32_t double_costs;
    int32_t method;
    int64_t max_cells;
    int64_t table_columns;
};

// What the kernels compute in. kSoft: float64, and float64 with an exponent for pairs beyond its range.
// kSoftFloat32: float32 with an exponent throughout, for cards with few float64 units. kHard: (max, +) in the
// type of the costs.
enum Arithmetic : int32_t { kSoft = 0, kSoftFloat32 = 1, kHard = 2 };

// How a batch is worked off: blocks that take pairs until none is left, each with its own part of the
// workspace.
struct Launch {
    int32_t blocks;
    int32_t threads;
    int32_t shared_bytes;
    int64_t workspace_bytes;
};

// `detail`: posterior or mapping wanted. The number of blocks is cut until the workspace fits in
// `memory_budget` bytes, to one at least. threads = 0 chooses.
int choose_launch(const TreePairs& pairs, Arithmetic arithmetic, bool detail, int64_t memory_budget,
                  int32_t threads, Launch* launch);

// cells, columns (batch,): of the decomposition that each pair would get; used, status (batch,). Costs are
// not read.
int plan_tree_alignment(const TreePairs& pairs, int64_t* cells, int64_t* columns, int64_t* used,
                        int32_t* status, void* stream);

// temperature (batch,) float64; value, entropy (batch,) and posterior (batch, width_a, width_b) in the type
// of the costs; the posterior zero-filled by the caller, or null: then the entropy is 0.
int soft_tree_alignment(const TreePairs& pairs, const double* temperature, void* value, void* posterior,
                        void* entropy, int64_t* used, int32_t* status, Arithmetic arithmetic,
                        const Launch& launch, void* workspace, void* stream);

// match_a (batch, width_a) and match_b (batch, width_b), filled with -1 by the caller, or both null.
int hard_tree_alignment(const TreePairs& pairs, void* distance, int64_t* match_a, int64_t* match_b,
                        int64_t* used, int32_t* status, const Launch& launch, void* workspace, void* stream);

// float32 throughput over float64 throughput of the current device.
int float64_slowdown(int32_t* ratio);

// Text of an error code.
const char* error_text(int status);

// Number of visible devices; -1 when the driver is missing or too old.
int device_count();

}  // namespace structloss::cuda
