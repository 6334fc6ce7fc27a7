/**
 * The own properties of an object of the caller's and the elements of plain arrays in it, each read once: no getter,
 * Proxy or polluted prototype is consulted after that. Looked for one by one: there are few, and a Map of them takes
 * longer to make than to read; so do entries, and arrays that grow.
 */
export class Properties {
  readonly #names: string[];
  readonly #values: unknown[];

  constructor(object: object) {
    const names = Object.keys(object);
    const values = new Array<unknown>(names.length);
    for (let i = 0; i < names.length; i++) {
      const value = (object as Record<string, unknown>)[names[i]!];
      values[i] = Array.isArray(value) ? elementsOf(value) : value;
    }
    this.#names = names;
    this.#values = values;
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

function elementsOf(array: readonly unknown[]): unknown[] {
  const copy = new Array<unknown>(array.length);
  for (let i = 0; i < copy.length; i++) copy[i] = array[i];
  return copy;
}
