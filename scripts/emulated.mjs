// The library of CUDA kernels for the emulated GPU: cuda/*.cu compiled as C++, kept between runs.
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import path from "node:path";
import process from "node:process";

/** The test files that exercise the kernels most, and the pattern of names that leaves out their slowest test. */
export const kernelTests =
  /^(cast|cuda\.(data|memory)|fapo\w+|fusedPolicyLoss\.edges|groupAdvantage(\.metamorphic)?|policyLoss\.(edges|gradient)|tokenLogprob\.(edges|extremes|gradients|layout|longRows|properties))\.test\.js$/;
export const notTheSlowest = "--test-name-pattern=^(?!more rows than 65,535)";

/** Builds it, in the current folder; `library` is the file, or `why` says why there is none. */
export function buildEmulated() {
  const build = "build/emulated";
  const target = "fapo_kernels_cuda_emulated";
  const cmake = (...args) => execFileSync("cmake", args, { encoding: "utf8", stdio: "pipe" });
  try {
    if (!existsSync(path.join(build, "CMakeCache.txt"))) cmake("-S", ".", "-B", build, "-DFAPO_EMULATE_CUDA=ON");
    cmake("--build", build, "--target", target, "--parallel", process.env.JOBS ?? "2");
    return { library: path.resolve(build, "Release", `${target}.so`) };
  } catch (error) {
    return { why: `no emulated one: ${(error.stderr || error.stdout || error.message).trim().split("\n").pop()}` };
  }
}
