/**
 * Server-sent events, as far as chat completions use them: the `data` of each event. Lines end in LF or CRLF.
 */

/** No server sends a token's event longer than this; a longer line is garbage that must not fill the memory. */
const maxLineChars = 1 << 20;

export class EventStream {
  #buffer = "";
  #data: string[] = [];

  /**
   * Takes the next piece of the stream, returns the data of the events it completes.
   * @throws RangeError for a line that never ends
   */
  push(piece: string): string[] {
    const events: string[] = [];
    let searched = this.#buffer.length;
    let start = 0;
    const text = this.#buffer + piece;
    for (let end = text.indexOf("\n", searched); end >= 0; end = text.indexOf("\n", searched)) {
      this.#line(text.slice(start, text[end - 1] === "\r" && end > start ? end - 1 : end), events);
      start = searched = end + 1;
    }
    this.#buffer = text.slice(start);
    if (this.#buffer.length > maxLineChars) throw new RangeError(`a line of more than ${maxLineChars} characters`);
    return events;
  }

  /** The data of a last event whose blank line was left out. */
  end(): string[] {
    const events: string[] = [];
    this.#line(this.#buffer, events);
    this.#line("", events);
    this.#buffer = "";
    return events;
  }

  #line(line: string, events: string[]): void {
    if (line === "") {
      if (this.#data.length > 0) events.push(this.#data.join("\n"));
      this.#data = [];
    } else if (line.startsWith("data:")) {
      this.#data.push(line.slice(line[5] === " " ? 6 : 5));
    }
  }
}
