// DSpark's sequential head: what makes the positions of one block depend on each other (dspark.md 1.5, 1.6).
#pragma once

#include "kernels/kernel_context.h"
#include "tensor/tensor.h"

namespace foresight {

// How the bias of a drafted position follows from the token before it.
enum class MarkovHeadType : uint8_t {
  kVanilla,  // the previous token's embedding: every released head
  kGated,    // the embedding times a gate of hidden state and embedding
  kRnn,      // a recurrent state over the block's tokens
};

struct SequentialHeadWeights {
  MarkovHeadType type = MarkovHeadType::kVanilla;
  MatrixView w1;          // markov_head.markov_w1.weight BF16 [V, r]; empty without a Markov head (rank 0)
  MatrixView w2;          // markov_head.markov_w2.weight BF16 [V, r]; empty without a Markov head
  MatrixView proj;        // gated: markov_head.gate_proj.weight  BF16 [r, D+r], columns [h ; e]
                          // rnn:   markov_head.joint_proj.weight BF16 [3r, 2r+D], columns [state ; e ; h]
  VectorView bias;        // of proj, BF16 [r] or [3r]
  MatrixView confidence;  // confidence_head.proj.weight BF16 [1, D+r], columns [h ; e]; empty without

  int64_t rank() const { return w1.cols; }
};

// One position of R blocks, given the token before it:
//   e = w1[previous];  confidence = confidence_proj [h ; e]
//   vanilla  x = e
//   gated    x = sigmoid(proj [h ; e] + bias) * e
//   rnn      (g, c, o) = proj [state ; e ; h] + bias, r values each
//            state = sigmoid(g) * state + (1 - sigmoid(g)) * tanh(c);  x = tanh(o)
//   logits += w2 x
//
// Shapes   previous [R] i32 in [0, V) · hidden [R, D] f32, before the last norm · state [R, r] f32 in and
// out,
//          rnn only, zeros at a block's first position · logits [R, V] f32 in and out, untouched without a
//          Markov head; null: neither bias nor state are asked for · confidence [R] f32 out, before the
//          sigmoid, untouched without that projection; null: not asked for
// Numerics float32 in both numerics; a row's result depends on its own row alone (row purity).
struct SequentialHeadArgs {
  int rows = 0;  // R
  int dim = 0;   // D
  const SequentialHeadWeights* weights = nullptr;
  const int32_t* previous = nullptr;
  const float* hidden = nullptr;
  float* state = nullptr;
  float* logits = nullptr;
  float* confidence = nullptr;
};

void SequentialHeadRef(const KernelContext& ctx, const SequentialHeadArgs& args);

}  // namespace foresight
