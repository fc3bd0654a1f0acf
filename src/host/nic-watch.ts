/** Follows the interfaces that are ports: link, MTU, and whether they are there (rtnetlink). Control thread. docs/nics.md */
import type { LinkChange } from '../os/index.ts';
import { watchLinks } from '../os/index.ts';
import { type Nic, parseInterface } from './nics.ts';

/** A port's connection to its interface. */
export interface NicUse {
  readonly nic: Nic;
  /** What was last heard of it. */
  readonly state: { running: boolean; mtu: number; gone: boolean };
  /** Of a native AF_XDP socket: whether the card reaches the buffers itself, or why it does not. */
  readonly zeroCopy: () => { readonly zeroCopy: boolean; readonly because?: string } | undefined;
  /** Lets go of the interface; what the port sends is dropped and counted from then on. */
  gone(): Promise<void>;
}

/** What is told of interfaces that are ports. */
export interface NicEvents {
  log(level: 'info' | 'warn', message: string): void;
  /** The interface is gone: its port has to let go of it. */
  gone(use: NicUse): void;
}

/** Follows the interfaces that are ports. Watches only while there are some. */
export class NicWatch {
  readonly #events: NicEvents;
  readonly #uses = new Set<NicUse>();
  #watching: { close(): void } | undefined;

  constructor(events: NicEvents) {
    this.#events = events;
  }

  add(use: NicUse): void {
    const { nic } = use;
    this.#uses.add(use);
    this.#watching ??= watchLinks((change) => this.#changed(change));
    const how = {
      native: 'AF_XDP, native',
      generic: 'AF_XDP, generic',
      packet: 'packet socket',
      tap: 'TAP',
      host: 'tc',
    };
    const zeroCopy = use.zeroCopy();
    const copies = zeroCopy === undefined ? '' : zeroCopy.zeroCopy ? ', zero copy' : ', copy mode';
    const because = nic.because ?? zeroCopy?.because;
    const why = because === undefined ? '' : ` (${because})`;
    const both = parseInterface(nic.name).part === 'both';
    const queues = nic.links.filter((link) => link !== undefined).length - (both ? 1 : 0);
    const host = both ? `; the host's stack: ${how.host}` : '';
    this.#events.log('info', `interface ${nic.name}: ${how[nic.mode]}${copies}, ${queues} queues${why}${host}`);
  }

  remove(use: NicUse): void {
    this.#uses.delete(use);
    if (this.#uses.size === 0) this.close();
  }

  close(): void {
    this.#watching?.close();
    this.#watching = undefined;
  }

  #changed({ ifindex, gone, running, mtu }: LinkChange): void {
    for (const use of this.#uses) {
      const { nic, state } = use;
      if (nic.ifindex !== ifindex) continue;
      if (gone) {
        this.#uses.delete(use);
        state.gone = true;
        state.running = false;
        this.#events.log('warn', `interface ${nic.name} is gone, and its port with it`);
        this.#events.gone(use);
        continue;
      }
      if (state.running !== running) this.#events.log('info', `interface ${nic.name}: link ${running ? 'up' : 'down'}`);
      state.running = running;
      if (mtu === 0 || mtu === state.mtu) continue;
      state.mtu = mtu;
      this.#events.log('info', `interface ${nic.name}: MTU ${mtu}`);
    }
  }
}
