import { setTimeout } from 'node:timers/promises';

/** Longest time without a look at signals, ms. */
const LOOK_MS = 100;

/** Waits (-w), until cancelled at most. */
export async function waitSeconds(seconds: number, cancel: { readonly cancelled: boolean }): Promise<void> {
  const end = performance.now() + 1000 * seconds;
  for (let now = performance.now(); now < end && !cancel.cancelled; now = performance.now()) {
    await setTimeout(Math.min(end - now, LOOK_MS));
  }
}

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
