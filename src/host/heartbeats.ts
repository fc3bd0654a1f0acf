/**
 * Frees a datapath thread that hangs in a write to a client's eventfd (R15): a client may make its descriptor blocking
 * and fill it. Watches from a thread's first write on until it sleeps, so that nothing ticks at rest.
 */
import { CTL } from '../kloop/index.ts';
import { eventfdDrain, eventfdIsFull } from '../os/index.ts';

const TICK_MS = 5;
/** Ticks without a heartbeat after which a write counts as stuck: more than 10 ms. */
const STUCK_TICKS = 3;
/** Ticks asleep after which watching ends: it begins with a message, which a packet that comes alone would wait for. */
const ASLEEP_TICKS = 20;
/** Most reads to free one write: others who wait to write the same descriptor may be woken first. */
const DRAINS = 1000;

export class Heartbeats {
  readonly #ctl: Int32Array;
  readonly #onStuck: (fd: number) => void;
  #timer: NodeJS.Timeout | undefined;
  #stuck = 0;
  #asleep = 0;
  #last = { writing: 0, beat: 0 };

  /** @param onStuck called after a write was freed, with the descriptor */
  constructor(ctl: Int32Array, onStuck: (fd: number) => void) {
    this.#ctl = ctl;
    this.#onStuck = onStuck;
  }

  /** The thread writes: watch it until it sleeps again. */
  watch(): void {
    this.#asleep = 0;
    this.#stuck = 0;
    this.#timer ??= setInterval(() => this.tick(), TICK_MS);
  }

  /** One look. */
  tick(): void {
    const ctl = this.#ctl;
    if (Atomics.load(ctl, CTL.ASLEEP) === 1) {
      if (++this.#asleep < ASLEEP_TICKS) return;
      clearInterval(this.#timer);
      this.#timer = undefined;
      Atomics.store(ctl, CTL.WATCHED, 0);
      // It may have woken in between, when WATCHED still said that it need not call.
      if (Atomics.load(ctl, CTL.ASLEEP) === 0 && Atomics.exchange(ctl, CTL.WATCHED, 1) === 0) this.watch();
      return;
    }
    this.#asleep = 0;
    const writing = Atomics.load(ctl, CTL.WRITING);
    const beat = Atomics.load(ctl, CTL.HEARTBEAT);
    const same = writing !== 0 && writing === this.#last.writing && beat === this.#last.beat;
    this.#stuck = same ? this.#stuck + 1 : 0;
    this.#last = { writing, beat };
    if (this.#stuck < STUCK_TICKS) return;
    this.#stuck = 0;
    // A busy machine may keep the thread from running in the middle of a write that has room: nobody's fault.
    if (!eventfdIsFull(writing - 1)) return;
    for (let i = 0; i < DRAINS && Atomics.load(ctl, CTL.WRITING) === writing; i++) {
      if (Atomics.load(ctl, CTL.HEARTBEAT) !== beat) break;
      eventfdDrain(writing - 1);
    }
    this.#onStuck(writing - 1);
  }
}
