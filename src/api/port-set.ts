/**
 * poll(2) on several ports at once: what an application does with an array of pollfd on netmap descriptors. Set `events`,
 * call `poll`, look at `revents`.
 */
import { POLLIN, PollSet, Spin } from '../os/index.ts';
import type { NetmapPort } from './port.ts';

/** Longest time-out that poll(2) takes, ms. */
const MAX_INT = 0x7fff_ffff;

export class PortSet {
  readonly ports: readonly NetmapPort[];
  /** POLLIN and POLLOUT, for each port: what to wait for. 0: nothing, but its pending tx slots are handed over. */
  readonly events: number[];
  /** Those of `events` that held when `poll` returned. */
  readonly revents: number[];
  readonly #pollSet: PollSet;
  /** Longest sleep: a device without interrupts says how often to look. */
  readonly #pollMs: number;
  readonly #spin = new Spin(0);
  readonly #moved = (): boolean => {
    for (let i = 0; i < this.ports.length; i++) if (this.ports[i]!.pollParts.moved(this.events[i]!)) return true;
    return false;
  };

  constructor(ports: readonly NetmapPort[]) {
    this.ports = ports;
    this.events = ports.map(() => 0);
    this.revents = ports.map(() => 0);
    this.#pollMs = Math.min(...ports.map(({ pollParts: { pollMs } }) => pollMs ?? Number.POSITIVE_INFINITY));
    this.#pollSet = new PollSet(
      ports.flatMap(({ pollParts: { fds } }) => fds.map((fd, i) => ({ fd, events: i === 2 ? 0 : POLLIN }))),
    );
  }

  /**
   * Syncs the ports as NetmapPort.poll does, and waits until some event holds. Blocks the thread.
   * @param timeoutMs milliseconds, 0 returns at once, -1 has no limit
   * @returns the number of ports with something in `revents`; 0 at a time-out or when a signal interrupted the wait
   * @throws SysError ENODEV when the daemon is gone
   */
  poll(timeoutMs: number): number {
    const ready = this.#sync();
    if (ready !== 0 || timeoutMs === 0) return ready;
    const end = timeoutMs < 0 ? Number.POSITIVE_INFINITY : performance.now() + timeoutMs;
    while (this.#spin.until(this.#moved, 0, end)) {
      const now = this.#sync();
      if (now !== 0) return now;
    }
    let armed = 0;
    try {
      for (; armed < this.ports.length; armed++) this.ports[armed]!.pollParts.want(this.events[armed]!);
      for (;;) {
        // Interrupts are on now, so look again before sleeping (R13).
        const now = this.#sync();
        const begin = performance.now();
        const left = end - begin;
        if (now !== 0 || left <= 0) return now;
        const sleep = Math.min(left, this.#pollMs);
        const n = this.#pollSet.poll(sleep === Number.POSITIVE_INFINITY ? -1 : Math.min(Math.ceil(sleep), MAX_INT));
        const slept = performance.now() - begin;
        this.#spin.slept(slept * 1000);
        if (n === 0 && slept >= sleep && sleep < left) continue; // a device without interrupts; no signal
        if (n === 0) return this.#sync();
        for (let i = 0; i < this.ports.length; i++) {
          const [tx, rx, hangup] = [3 * i, 3 * i + 1, 3 * i + 2];
          this.ports[i]!.pollParts.drain(
            this.#pollSet.revents(tx),
            this.#pollSet.revents(rx),
            this.#pollSet.revents(hangup),
          );
        }
      }
    } finally {
      while (armed-- > 0) this.ports[armed]!.pollParts.unwant(this.events[armed]!);
    }
  }

  #sync(): number {
    let ready = 0;
    for (let i = 0; i < this.ports.length; i++) {
      const revents = this.ports[i]!.pollParts.sync(this.events[i]!);
      this.revents[i] = revents;
      if (revents !== 0) ready += 1;
    }
    return ready;
  }
}
