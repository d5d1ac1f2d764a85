// Who draws a request's tokens: the host, or the device on which the logits lie; and what the device must
// know of a draw.
//
// The device draws, and judges drafts, where that needs no counts: temperature, min_p, top_k and top_p, by
// either rule. Requests with penalties, logit bias or log-probabilities are the host's, to which their rows
// are brought; so are all requests on a device that is the host. Both use the same random numbers, so that
// nothing but speed depends on who draws.
#pragma once

#include "base/rng.h"
#include "device/device.h"
#include "kernels/sampling/sampling.h"
#include "sampling/sampling_params.h"
#include "speculative/draft_block.h"

namespace foresight {

bool IsDrawnByDevice(const SamplingParams& params, const Device& device);

// A draw with these parameters, of which the device draws, and the key's noise.
SampleRow DeviceDraw(const SamplingParams& params, const RandomKey& key);

// Whether what a draft of this block was drawn from is needed to judge it: by rejection, unless it is a point
// mass.
bool KeepsDistribution(const DraftBlock& block);

// What a drafter says when draft k can't be drawn from its head's logits.
Status UndrawableDraft(int k);

}  // namespace foresight
