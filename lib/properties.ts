import { expect } from "./check.ts";

/**
 * The own properties of an object of the caller's and the elements of plain arrays in it, each read once: no getter,
 * Proxy or polluted prototype is consulted after that. Looked for one by one: there are few, and a Map of them takes
 * longer to make than to read; so do entries, and arrays that grow.
 */
export class Properties {
  readonly object: object;
  readonly #names: string[];
  readonly #values: unknown[];

  /** `prefix` goes before the names in messages. */
  constructor(op: string, object: object, prefix = "") {
    this.object = object;
    this.#names = Object.keys(object);
    this.#values = Object.values(object);
    if (this.#names.length !== this.#values.length) {
      // A getter has taken others away.
      const entries = Object.entries(object);
      this.#names = entries.map(([name]) => name);
      this.#values = entries.map(([, value]) => value);
    }
    const values = this.#values;
    for (let i = 0; i < values.length; i++) {
      const value = values[i];
      if (Array.isArray(value)) values[i] = elementsOf(op, `${prefix}${this.#names[i]}`, value);
    }
  }

  /** Takes a value out; undefined when it is absent or undefined. */
  take(name: string): unknown {
    const names = this.#names;
    for (let i = 0; i < names.length; i++) {
      if (names[i] !== name) continue;
      const values = this.#values;
      const value = values[i];
      const lastName = names.pop()!;
      const lastValue = values.pop();
      if (i < names.length) {
        names[i] = lastName;
        values[i] = lastValue;
      }
      return value;
    }
    return undefined;
  }

  /** The names of what nobody took. */
  get left(): readonly string[] {
    return this.#names;
  }
}

/** Longer plain arrays are mistakes, or sparse: a copy of one could take all memory. */
const mostElements = 2 ** 24;

function elementsOf(op: string, name: string, array: readonly unknown[]): unknown[] {
  const { length } = array;
  const fits = Number.isInteger(length) && length >= 0 && length <= mostElements;
  expect(fits, op, name, `a typed array where it is longer than ${mostElements}`, array);
  const copy = new Array<unknown>(length);
  for (let i = 0; i < length; i++) copy[i] = array[i];
  return copy;
}
