/** A worker that runs the workload a number of times and posts what it found. */
import { parentPort, workerData } from "node:worker_threads";
import { TestDevice } from "../support.ts";
import { digests } from "./workload.ts";

const { device, repeats } = workerData as { device: "cpu"; repeats: number };
const found = Array.from({ length: repeats }, () => digests(new TestDevice(device)));
parentPort!.postMessage(found);
