/** Ending a running command by SIGINT or SIGTERM: it finishes what it does; a second signal ends it at once. */
export class Cancel {
  cancelled = false;
  readonly #handler = (): void => {
    this.cancelled = true;
    this.#off();
  };

  constructor() {
    process.on('SIGINT', this.#handler).on('SIGTERM', this.#handler);
  }

  #off(): void {
    process.off('SIGINT', this.#handler).off('SIGTERM', this.#handler);
  }

  [Symbol.dispose](): void {
    this.#off();
  }
}
