#include "base/thread_pool.h"
#include "kernels/linear/linear.h"

// clang-format off
#include "kernels/cpu/isa_begin.h"
#include "kernels/cpu/simd.h"
#include "kernels/cpu/jobs.h"
// clang-format on

namespace foresight::FORESIGHT_ISA {
namespace {

constexpr int kMaxTargets = 16;

// The jobs of one matrix: blocks of rows x blocks of outputs.
struct Plan {
  const LinearTarget* target = nullptr;
  PackedRows x;
  int64_t outputs_per_job = 0;
  int64_t output_blocks = 0;
  int64_t first_job = 0;
};

// The input in one form, shared by the targets that want the same.
struct Packed {
  Form form;
  PackedRows x;
};

}  // namespace

void Linear(const KernelContext& ctx, const LinearArgs& args) {
  if (args.rows == 0) return;
  CHECK(args.targets.size() <= kMaxTargets, "{} targets in one call", args.targets.size());
  ArenaScope scope(*ctx.scratch);
  const int threads = ctx.pool->num_threads();
  const int64_t row_blocks = CeilDiv(args.rows, kJobRows);

  Packed packed[kMaxTargets];
  int num_packed = 0;
  Plan plans[kMaxTargets];
  int num_plans = 0;
  int64_t jobs = 0;
  int64_t bytes = 0;
  int64_t scratch_bytes = 0;
  for (const LinearTarget& target : args.targets) {
    const Form form =
        FormOf(ctx, target.w.dtype, /*is_projection=*/target.numerics == LinearNumerics::kProjection);
    int f = 0;
    while (f < num_packed && packed[f].form != form) ++f;
    if (f == num_packed) {
      const int64_t k = target.w.cols;
      packed[num_packed++] = {form, Pack(ctx, args.x, k, args.rows, k, form)};
    }
    const int64_t per_job = JobOutputs(target.w, target.w.rows, args.rows, threads);
    const int64_t blocks = CeilDiv(target.w.rows, per_job);
    plans[num_plans++] = {&target, packed[f].x, per_job, blocks, jobs};
    jobs += blocks * row_blocks;
    bytes += target.w.rows * target.w.row_bytes();
    const int64_t need = ProductScratchBytes(target.w, args.rows);
    if (need > scratch_bytes) scratch_bytes = need;
  }
  scratch_bytes = CeilDiv(scratch_bytes, 64) * 64;
  std::byte* scratch = ctx.scratch->Allocate<std::byte>(scratch_bytes * threads);

  ForJobs(ctx, jobs, bytes * args.rows, [&](int64_t job, int thread) {
    int i = num_plans - 1;
    while (plans[i].first_job > job) --i;
    const Plan& plan = plans[i];
    const LinearTarget& target = *plan.target;
    const int64_t block = (job - plan.first_job) % plan.output_blocks;
    const int64_t first_row = (job - plan.first_job) / plan.output_blocks * kJobRows;
    const int64_t begin = block * plan.outputs_per_job;
    const int64_t end = begin + plan.outputs_per_job;
    const int64_t rows = args.rows - first_row;
    Multiply({
        .w = &target.w,
        .begin = begin,
        .end = end < target.w.rows ? end : target.w.rows,
        .x = {plan.x.data + first_row * plan.x.stride, plan.x.stride, plan.x.terms},
        .rows = static_cast<int>(rows < kJobRows ? rows : kJobRows),
        .out = target.out.f32() + first_row * target.w.rows + begin,
        .out_stride = target.w.rows,
        .round_to_bf16 = ctx.faithful() && target.numerics != LinearNumerics::kFloat32,
        .scratch = scratch + thread * scratch_bytes,
    });
  });
}

void GroupedLinear(const KernelContext& ctx, const GroupedLinearArgs& args) {
  if (args.rows == 0) return;
  ArenaScope scope(*ctx.scratch);
  const int threads = ctx.pool->num_threads();
  const int64_t k = args.w.cols;
  const int64_t outputs = args.w.rows / args.groups;
  // Packed as rows of (row, group).
  const PackedRows x = Pack(ctx, args.x.f32(), k, int64_t{args.rows} * args.groups, k,
                            FormOf(ctx, args.w.dtype, /*is_projection=*/false));
  const int64_t per_job = JobOutputs(args.w, outputs, args.rows, threads);
  const int64_t blocks = CeilDiv(outputs, per_job);
  const int64_t row_blocks = CeilDiv(args.rows, kJobRows);
  const int64_t scratch_bytes = CeilDiv(ProductScratchBytes(args.w, args.rows), 64) * 64;
  std::byte* scratch = ctx.scratch->Allocate<std::byte>(scratch_bytes * threads);

  const int64_t bytes = args.w.rows * args.w.row_bytes();
  ForJobs(ctx, row_blocks * args.groups * blocks, bytes * args.rows, [&](int64_t job, int thread) {
    const int64_t block = job % blocks;
    const int64_t group = job / blocks % args.groups;
    const int64_t first_row = job / blocks / args.groups * kJobRows;
    const int64_t rows = args.rows - first_row;
    const int64_t begin = group * outputs + block * per_job;
    const int64_t end = begin + per_job;
    const int64_t group_end = (group + 1) * outputs;
    Multiply({
        .w = &args.w,
        .begin = begin,
        .end = end < group_end ? end : group_end,
        .x = {x.data + (first_row * args.groups + group) * x.stride, x.stride * args.groups, x.terms},
        .rows = static_cast<int>(rows < kJobRows ? rows : kJobRows),
        .out = args.out + first_row * args.w.rows + begin,
        .out_stride = args.w.rows,
        .round_to_bf16 = ctx.faithful(),
        .scratch = scratch + thread * scratch_bytes,
    });
  });
}

}  // namespace foresight::FORESIGHT_ISA

#include "kernels/cpu/isa_end.h"
