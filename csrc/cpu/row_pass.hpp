// The row pass of the LM head on the CPU: logits in, per-token loss and statistics out, and the gradient.
//
// structloss/lm_head/row_pass.py has the formulas. Two ways to the gradient share them:
//
//   row_pass   whole rows; the logits are overwritten with their gradient. One sweep reads (running maximum
//   and
//              rescaled sum), one reads and writes.
//   RowStream  a block of classes after the other; the logits are overwritten with exp(z - top), which the
//   caller
//              multiplies with the head's rows and adds up, and `finish` makes the gradient of the hidden
//              states of it. One sweep, and a block need never leave the cache.
//
// A row is worked on by one thread, so the number of threads changes no bit.
#pragma once

#include <cstdint>
#include <vector>

#include "row_kernels.hpp"

namespace structloss {

// Null pointers: class_weight counts as ones, softcap 0 is no cap.
struct RowFormula {
    int64_t vocab;
    const float* class_weight;  // (vocab,)
    double class_sum;           // of class_weight
    double label_smoothing;
    double z_loss;
    float softcap;
    float logit_scale;
};

// All (rows,); target, weight and unlikely as of row_pass.py. weight, unlikely, upstream may be null.
struct RowInputs {
    int64_t rows;
    const int64_t* target;
    const float* weight;
    const uint8_t* unlikely;
    const float* upstream;
};

// All (rows,); entropy and argmax may be null.
struct RowResults {
    float* loss;
    float* logprob;
    float* lse;
    float* entropy;
    int64_t* argmax;
};

// What is known of a row after some of its classes, the target among them or not. The target is no part of
// the sums.
struct RowState {
    double sum = 0.0;     // of exp(z - top)
    double moment = 0.0;  // of exp(z - top) * (z - top)
    double dot = 0.0;     // of class_weight * z, the target included
    float top = -0x1.fffffep127f;
    float best = -0x1.fffffep127f;  // the largest z, NaN as soon as there is one
    int64_t best_class = -1;
    float target_z = 0.0f;
    float target_slope = 1.0f;
};

// Overwrites logits (rows, vocab) with their gradient where `upstream` is given, else leaves them undefined.
// A row begins every `stride` elements.
template <class Logit>
void row_pass(const RowFormula& formula, const RowInputs& inputs, const RowResults& results, Logit* logits,
              int64_t stride, int64_t threads);

// The head's rows that `finish` needs, and where the gradient goes.
template <class Logit>
struct HiddenGradient {
    int64_t width;
    const float* total;   // (rows, width): sum over classes of (the logits that `absorb` left) * weight
    const Logit* weight;  // (vocab, width)
    int64_t weight_stride[2];
    const int64_t* index;  // row of `out` for each row, null where they are the same
    Logit* out;            // (any, width)
};

class RowStream {
  public:
    RowStream(const RowFormula& formula, int64_t rows, bool entropy, bool argmax)
        : formula_(formula), entropy_(entropy), argmax_(argmax), states_(rows) {}

    // Takes the logits (rows, columns) of the classes from `first` on and, with `weigh`, overwrites them with
    // exp(z - top) * dz/da, 0 at the target. Where a row has a new top, its part of `total` (rows, width;
    // null before the first block) is rescaled to it. No smoothing.
    template <class Logit>
    void absorb(const int64_t* target, int64_t first, int64_t columns, Logit* logits, bool weigh,
                float* total, int64_t width, int64_t threads);

    // Per-token results after the last block and, with upstream, the gradient of the hidden states.
    template <class Logit>
    void finish(const RowInputs& inputs, const RowResults& results, const HiddenGradient<Logit>& gradient,
                int64_t threads);

  private:
    RowFormula formula_;
    bool entropy_;
    bool argmax_;
    std::vector<RowState> states_;
};

}  // namespace structloss
