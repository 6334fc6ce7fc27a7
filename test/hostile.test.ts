/** Callers that run code inside a call, or lie about their objects. */
import assert from "node:assert/strict";
import {
  FapoError,
  fapoAdvantage,
  fapoPenalty,
  groupAdvantage,
  learningProgress,
  policyLoss,
  type Tensor,
  tensor,
} from "fapo-kernels";
import { assertSameMaps, bitsOf, poisoned } from "./support/ops.ts";
import { detached } from "./support/refusals.ts";
import { assertFails, assertSameBits, forEachDevice, type TestDevice } from "./support.ts";

type Options = Record<string, unknown>;
type Op = (options: never) => object;

interface Target {
  name: string;
  op: Op;
  /** A call with as many options as go together, its arrays new each time. */
  good: () => Options;
}

const targets: readonly Target[] = [
  {
    name: "fapoPenalty",
    op: fapoPenalty,
    good: () => ({
      correct: Uint8Array.of(1, 0, 1, 1),
      flawed: Int8Array.of(1, 0, -1, 0),
      responseLengths: Int32Array.of(10, 20, 30, 40),
      overlong: { maxLength: 40, buffer: 20, factor: 2 },
      flawedPenalty: 1.5,
      unknownVerdict: "flawed",
      rewardCorrect: 2,
      rewardWrong: -2,
    }),
  },
  {
    name: "groupAdvantage",
    op: groupAdvantage,
    good: () => ({
      rewards: Float32Array.of(1, 2, 3, 5),
      valid: Uint8Array.of(1, 1, 1, 1),
      varianceRewards: Float32Array.of(1, 1, 2, 2),
      groupIds: Int32Array.of(0, 1, 0, 1),
      groups: 2,
      baseline: "leave-one-out",
      scale: "batch-std",
      ddof: 0,
      epsilon: 1e-4,
      singleton: "raw",
    }),
  },
  {
    name: "fapoAdvantage",
    op: fapoAdvantage,
    good: () => ({
      correct: Uint8Array.of(1, 0, 1, 1),
      flawed: Int8Array.of(1, 0, -1, 0),
      groupOffsets: Int32Array.of(0, 2, 4),
      flawedPenalty: 0.5,
      ddof: 0,
    }),
  },
  {
    name: "policyLoss",
    op: policyLoss,
    good: () => ({
      logprobs: Float32Array.of(-1, -2, -3, -4),
      oldLogprobs: Float32Array.of(-1.1, -2.5, -3, -3.5),
      refLogprobs: Float32Array.of(-1, -2, -2, -2),
      advantages: Float32Array.of(1, -1),
      importanceWeights: Float32Array.of(1, 2),
      responseMask: Uint8Array.of(1, 1, 0, 1),
      cuSeqlens: Int32Array.of(0, 3, 4),
      klEstimator: "k3",
      klCoef: 0.1,
      clipRatioLow: 0.1,
      clipRatioHigh: 0.3,
      clipRatioC: 3,
      logRatioClamp: 10,
      lossAggMode: "seq-mean-token-sum-norm",
      horizon: 5,
      globalTokens: 9,
      globalSequences: 3,
      gradScale: 2,
    }),
  },
];

const learning: Target = {
  name: "learningProgress",
  op: (options) => learningProgress(options),
  good: () => ({
    correct: Uint8Array.of(1, 0, 1, 1),
    flawed: Int8Array.of(1, 0, -1, 0),
    groupSize: 2,
    unknownVerdict: "flawed",
    flawedPenalty: 0.5,
  }),
};

function bits(device: TestDevice, result: object): ReturnType<typeof bitsOf> {
  return bitsOf(device, result);
}

for (const { name, op, good } of targets) {
  const withDevice = (device: TestDevice): Options => ({ ...good(), device: device.name });

  forEachDevice(`${name}: an error thrown by a getter passes unchanged, and nothing is written`, (device) => {
    const call = op as (options: Options) => object;
    for (const option of Object.keys(good())) {
      const out = poisoned(device, call(withDevice(device)));
      const before = bits(device, out);
      const boom = new Error(`${option} is not to be had`);
      const options = Object.defineProperty({ ...withDevice(device), out }, option, {
        enumerable: true,
        get: () => {
          throw boom;
        },
      });
      assert.throws(
        () => call(options),
        (error) => error === boom,
      );
      assertSameMaps(bits(device, out), before, option);
    }
  });

  forEachDevice(`${name}: a getter that detaches, disposes or calls the op again cannot break a call`, (device) => {
    const call = op as (options: Options) => object;
    const expected = bits(device, call(withDevice(device)));
    const names = Object.keys(good());
    const arrays = names.filter((option) => ArrayBuffer.isView(good()[option]));
    for (const getter of names) {
      for (const victim of arrays) {
        for (const attack of ["detach", "dispose", "call again"]) {
          const options: Options = withDevice(device);
          const data = options[victim] as Float32Array;
          const wrapped = attack === "dispose" ? tensor(data) : data;
          options[victim] = wrapped;
          const out = poisoned(device, call(withDevice(device)));
          options.out = out;
          const value = options[getter];
          Object.defineProperty(options, getter, {
            enumerable: true,
            get: () => {
              if (attack === "detach" && data.byteLength > 0) detached(data);
              if (attack === "dispose") (wrapped as Tensor).dispose();
              if (attack === "call again") call({ ...withDevice(device), out });
              return value;
            },
          });
          const attempt = (): object => call(options);
          if (attack === "call again") {
            assertSameMaps(bits(device, attempt()), expected, `${getter} calls again`);
          } else {
            assert.throws(attempt, FapoError, `${getter} takes ${victim} away`);
          }
        }
      }
    }
    assertSameMaps(bits(device, call(withDevice(device))), expected, "afterwards");
  });

  forEachDevice(`${name}: a Proxy is read once per option, a revoked one throws its TypeError`, (device) => {
    const call = op as (options: Options) => object;
    const expected = bits(device, call(withDevice(device)));
    const reads: PropertyKey[] = [];
    const proxy = new Proxy(withDevice(device), {
      get: (target, key) => {
        reads.push(key);
        return target[key as string];
      },
    });
    assertSameMaps(bits(device, call(proxy)), expected);
    assert.equal(new Set(reads).size, reads.length);
    const revoked = Proxy.revocable(withDevice(device), {});
    revoked.revoke();
    assert.throws(() => call(revoked.proxy), TypeError);
  });

  forEachDevice(`${name}: a polluted prototype is not read`, (device) => {
    const call = op as (options: Options) => object;
    const expected = bits(device, call(withDevice(device)));
    const options = [
      ...Object.keys(good()),
      "out",
      "factor",
      "dtype",
      "shape",
      "groupSize",
      "nonsense",
      "get",
      "value",
    ];
    const prototype = Object.prototype as Options;
    for (const option of options) {
      // Both where the option is given and where it is not.
      for (const without of [false, true]) {
        const own = withDevice(device);
        if (without) delete own[option];
        if (without && own.overlong) own.overlong = { maxLength: 40, buffer: 20 };
        const attempt = (): unknown => {
          try {
            return bits(device, call({ ...own }));
          } catch (error) {
            return `${error}`;
          }
        };
        const clean = attempt();
        try {
          prototype[option] = 3;
          const dirty = attempt();
          delete prototype[option];
          assert.deepEqual(dirty, clean, option);
        } finally {
          delete prototype[option];
        }
      }
    }
    assertSameMaps(bits(device, call(withDevice(device))), expected);
  });

  forEachDevice(`${name}: setters and read-only properties of a polluted prototype swallow no result`, (device) => {
    const call = op as (options: Options) => object;
    const expected = bits(device, call(withDevice(device)));
    const results = Object.keys(call(withDevice(device)));
    for (const result of results) {
      for (const property of [{ set: () => {}, get: () => 7 }, { value: 7 }]) {
        Object.defineProperty(Object.prototype, result, { ...property, configurable: true });
        let got: object;
        try {
          got = call(withDevice(device));
        } finally {
          delete (Object.prototype as Options)[result];
        }
        assert.deepEqual(Object.keys(got), results, result);
        assertSameMaps(bits(device, got), expected, result);
      }
    }
  });

  forEachDevice(`${name}: accessors for indices of a polluted Array.prototype change no result`, (device) => {
    const call = op as (options: Options) => object;
    // The elements of plain arrays are made typed ones: holes in those are read through the prototype.
    const own = withDevice(device);
    const expected = bits(device, call(own));
    const out = call(own);
    for (let i = 0; i < 40; i++) {
      Object.defineProperty(Array.prototype, i, { get: () => 42, set: () => {}, configurable: true });
      try {
        call({ ...own, out });
      } finally {
        delete (Array.prototype as unknown as Options)[i];
      }
      assertSameMaps(bits(device, out), expected, `${i}`);
    }
  });

  forEachDevice(`${name}: a getter that takes another option away`, (device) => {
    const call = op as (options: Options) => object;
    const prototype = Object.prototype as Options;
    for (const option of Object.keys(good()).slice(1)) {
      const without = withDevice(device);
      delete without[option];
      const attempt = (options: Options): unknown => {
        try {
          return bits(device, call(options));
        } catch (error) {
          return `${error}`;
        }
      };
      const expected = attempt(without);
      const [first, ...rest] = Object.entries(withDevice(device));
      const own: Options = {};
      Object.defineProperty(own, first![0], {
        enumerable: true,
        get: () => {
          delete own[option];
          return first![1];
        },
      });
      Object.assign(own, Object.fromEntries(rest));
      try {
        prototype[option] = 3;
        const got = attempt(own);
        delete prototype[option];
        assert.deepEqual(got, expected, option);
      } finally {
        delete prototype[option];
      }
    }
  });

  forEachDevice(`${name}: inherited, frozen and null-prototype options`, (device) => {
    const call = op as (options: Options) => object;
    const expected = bits(device, call(withDevice(device)));
    assertSameMaps(bits(device, call(Object.freeze(withDevice(device)))), expected, "frozen");
    assertSameMaps(bits(device, call(Object.assign(Object.create(null), withDevice(device)))), expected, "null");
    assert.throws(() => call(Object.create(withDevice(device))), FapoError);
    const symbol = { ...withDevice(device), [Symbol("option")]: 1 };
    assertSameMaps(bits(device, call(symbol)), expected, "symbols are nobody's options");
  });

  forEachDevice(`${name}: typed arrays that lie about their length, and subclasses, are what they are`, (device) => {
    const call = op as (options: Options) => object;
    const expected = bits(device, call(withDevice(device)));
    for (const [option, value] of Object.entries(good())) {
      if (!ArrayBuffer.isView(value)) continue;
      const Base = value.constructor as typeof Float32Array;
      class Sub extends Base {}
      assertSameMaps(
        bits(device, call({ ...withDevice(device), [option]: Sub.from(value as Float32Array) })),
        expected,
      );
      for (const length of [0, 1, 3, 1000, 2 ** 40]) {
        const lying = Base.from(value as Float32Array);
        Object.defineProperty(lying, "length", { value: length });
        try {
          assertSameMaps(
            bits(device, call({ ...withDevice(device), [option]: lying })),
            expected,
            `${option} says ${length}`,
          );
        } catch (error) {
          assert.ok(error instanceof FapoError, `${option} says ${length}: ${error}`);
        }
      }
    }
  });
}

forEachDevice(
  "elements of a number[] that run code: nothing is called, and no buffer is taken away in time",
  (device) => {
    let called = 0;
    const counting = {
      valueOf: () => ++called,
      toString: () => String(++called),
      [Symbol.toPrimitive]: () => ++called,
    };
    const rewards = [1, counting, 3];
    const options = { rewards: rewards as number[], groupSize: 3, device: device.name };
    assertFails(
      () => groupAdvantage(options),
      "ERR_INVALID_ARGUMENT",
      /^groupAdvantage: expected rewards\[1\] to be a number/,
    );
    assert.equal(called, 0);

    // The rewards are read first; the getter of an element of valid takes them away.
    const untouched = groupAdvantage({ rewards: [1, 2, 3, 4], groupSize: 4, device: device.name });
    for (const attack of ["detach", "dispose"]) {
      const data = Float32Array.of(1, 2, 3, 4);
      const victim = attack === "dispose" ? tensor(data) : data;
      const valid = [1, 1, 1, 1];
      Object.defineProperty(valid, 2, {
        get: () => {
          if (attack === "dispose") (victim as Tensor).dispose();
          else if (data.byteLength > 0) detached(data);
          return 1;
        },
      });
      try {
        const { advantages } = groupAdvantage({ rewards: victim, valid, groupSize: 4, device: device.name });
        assertSameBits(device.read(advantages), device.read(untouched.advantages), attack);
      } catch (error) {
        assert.ok(error instanceof FapoError, String(error));
      }
    }

    // One that would take all memory, and lengths that no array has.
    const sparse: number[] = [];
    sparse.length = 2e8;
    const long = /^groupAdvantage: expected valid to be a typed array where it is longer than 16777216, got \[/;
    const ofLength = (length: number): number[] =>
      new Proxy([], { get: (array, key) => (key === "length" ? length : Reflect.get(array, key)) });
    const longer = [sparse, ...[2 ** 33, -1, 0.5, Number.NaN, Number.POSITIVE_INFINITY].map(ofLength)];
    for (const valid of longer) {
      const call = (): object => groupAdvantage({ ...options, rewards: [1, 2, 3], valid });
      assert.throws(call, (error) => {
        assert.ok(error instanceof FapoError, `${error}`);
        assert.equal(error.code, "ERR_INVALID_ARGUMENT");
        return true;
      });
    }
    assertFails(() => groupAdvantage({ ...options, rewards: [1, 2, 3], valid: sparse }), "ERR_INVALID_ARGUMENT", long);

    // An array that shrinks or grows while it is read.
    for (const length of [0, 1000]) {
      const shifty = [1, 2, 3, 4];
      Object.defineProperty(shifty, 1, {
        get: () => {
          shifty.length = length;
          return 2;
        },
        configurable: true,
      });
      try {
        const { advantages } = groupAdvantage({ rewards: shifty, groupSize: 4, device: device.name });
        assert.equal(device.floats(advantages).length, 4);
      } catch (error) {
        assert.ok(error instanceof FapoError || error instanceof TypeError, String(error));
      }
    }
  },
);

forEachDevice("learningProgress: getters, proxies and polluted prototypes", () => {
  const call = learning.op as (options: Options) => object;
  const expected = call(learning.good());
  assert.deepEqual(call(new Proxy(learning.good(), {})), expected);
  for (const option of Object.keys(learning.good())) {
    const boom = new Error(option);
    const options = Object.defineProperty(learning.good(), option, {
      enumerable: true,
      get: () => {
        throw boom;
      },
    });
    assert.throws(
      () => call(options),
      (error) => error === boom,
    );
    const prototype = Object.prototype as Options;
    try {
      prototype[option] = 3;
      assert.deepEqual(call(learning.good()), expected);
    } finally {
      delete prototype[option];
    }
  }
});
