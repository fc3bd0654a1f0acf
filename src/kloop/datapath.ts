/**
 * The datapath module, typed: per-packet code (src/datapath, compiled to one WebAssembly module) that works on one
 * arena. Addresses are arena offsets of the structs of src/abi/host.ts. A domain and everything attached to it is
 * touched by one thread: all calls about it are made there.
 *
 * A call throws WebAssembly.RuntimeError when it meets an unmapped page (R2): the domain is then in an unknown state,
 * and must not be called again.
 */
import { readFileSync } from 'node:fs';
import type { Views } from '../abi/index.ts';
import { domain, kring } from '../abi/index.ts';

export interface Datapath {
  /** Makes zeroed pages (domain.size bytes) a VALE switch. */
  valeInit(domain: number): void;
  /** … a pipe, */
  pipeInit(domain: number): void;
  /** … a place for null ports. Ports of all kinds are attached and detached by the functions below. */
  nullInit(domain: number): void;
  /** … a place for the port of an interface. */
  nicInit(domain: number): void;
  /** Takes a nic_queue (filled, its rings mapped) into use: the buffers of the ring that receives go to the kernel. */
  nicUp(domain: number, queue: number): void;
  /** Lets go of a queue's rings. What was not sent is lost. Nothing if it is not up. */
  nicDown(queue: number): void;
  /**
   * Attaches a port (its struct and krings filled, rings stopped). Returns its port_id, the lowest free one, or
   * -EBUSY: attached already, -ENOSPC: NM_BDG_MAXPORTS ports.
   */
  valeAttach(domain: number, port: number): number;
  /** Stops the port's rings (krStop), forgets its addresses, takes it off the domain. 0 or -EINVAL: not attached there. */
  valeDetach(domain: number, port: number): number;
  /**
   * Takes a port from one switch to another; its rings go on running. Signals must have been drained. Returns its new
   * port_id, or -EINVAL: not attached there, -ENOSPC: NM_BDG_MAXPORTS ports.
   */
  valeMove(from: number, to: number, port: number): number;
  /**
   * Attaches a monitor's port (docs/monitors.md) to the domain of the port it shows; nothing is delivered to it but by
   * monLink. @param kind MONITOR_COPY, MONITOR_ZCOPY. 0, -EBUSY: attached already, -ENOSPC: MAX_MONITOR_RINGS
   */
  monAttach(domain: number, port: number, kind: number): number;
  /** Makes a monitor's rx ring show what passes through a ring of a port of its domain. */
  monLink(monitor: number, kring: number): void;
  /** Ends what monLink did for all rings of a port: its monitors see nothing of it any more. */
  monForget(port: number): void;
  /** Stops a monitor's rings, ends what monLink did, takes it off the domain. 0 or -EINVAL. */
  monDetach(domain: number, port: number): number;
  /**
   * Before control code rewrites the slots of a stopped ring: its peer, if it has one (pipes), leaves it alone until
   * krReset. 0 or -EBUSY: running.
   */
  krFreeze(kring: number): number;
  /**
   * Gives a stopped ring the positions of a new one; rings of a pipe keep theirs, which the other end shares. 0 or
   * -EBUSY: running. Slots are control code's business.
   */
  krReset(kring: number): number;
  /**
   * CREATE, first half: 0 if ktoa.kern_need_kick is 1, else -EINVAL (abi, section 2). atok and ktoa must be set. A device
   * checks all its rings before it starts the first.
   */
  krCheck(kring: number): number;
  /**
   * CREATE, second half: fills both halves of the CSB from the ring's positions, which persist from one start to the
   * next; the ring is served from now on. 0 (also if it runs already) or -EINVAL: port not attached.
   */
  krStart(kring: number): number;
  /** DELETE: one last sync (tx: sends what is pending; rx: takes released slots back), then no access to its CSB any more. */
  krStop(kring: number): void;
  /**
   * One turn: sends what the running tx rings have, at most a batch of 512 slots each (R8), and publishes; rings that were
   * idle for long are looked at every some turns (docs/datapath.md, parked rings). A ring that moved is disarmed
   * (kern_need_kick = 0). Returns the slots taken; 0: nothing moved.
   */
  serve(domain: number): number;
  /**
   * Before sleeping: publishes what receivers released, and arms every running tx ring (R11). rx rings: a switch's never,
   * a pipe's while the sender waits for room, a null port's always. What `look` or `serve` read afterwards is newer than the arming (R12).
   */
  arm(domain: number): void;
  /** Number of running rings for which `serve` would do something. A ring that stays faulty is not one (R7). */
  look(domain: number): number;
}

/** The exports as WebAssembly has them: numbers come back signed. */
type Exports = { readonly [K in keyof Datapath]: Datapath[K] };

const file = new URL('../datapath/datapath.wasm', import.meta.url);
let compiled: WebAssembly.Module | undefined;

/** Instantiates the datapath over an arena of any size. The module has no state of its own (R4). */
export function loadDatapath(memory: WebAssembly.Memory): Datapath {
  compiled ??= new WebAssembly.Module(readFileSync(file));
  return new WebAssembly.Instance(compiled, { env: { memory } }).exports as unknown as Exports;
}

/**
 * Calls `signal` for each ring whose owner asked for an interrupt since the last time. To be called after serve, krStop
 * and valeDetach and arm, on the domain's thread.
 */
export function drainSignals(m: Views, d: number, signal: (kring: number) => void): void {
  const n = domain.get.num_signals(m, d);
  if (n === 0) return;
  domain.set.num_signals(m, d, 0);
  const list = (d + domain.ofs.signals) >>> 2;
  for (let i = 0; i < n; i++) {
    const kr = m.u32[list + i]!;
    kring.set.signalled(m, kr, 0);
    signal(kr);
  }
}
