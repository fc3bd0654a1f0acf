/**
 * The loop of a datapath thread (netmap's sync-kloop): serves the rings of its domains while they move; when nothing
 * moved for a short adaptive while it arms, looks again, sleeps (docs/rules.md, wake-ups).
 *
 * `Kloop` knows no thread: `turn` and `execute` can be driven by a test; `run` is the whole life of a thread.
 * Owner of everything host-private in its arena's domains. Nothing here allocates once traffic flows.
 */
import type { Views } from '../abi/index.ts';
import {
  DOMAIN_NIC,
  DOMAIN_NULL,
  DOMAIN_PIPE,
  domain as domainLayout,
  kring,
  nm_csb_atok,
  port as portLayout,
} from '../abi/index.ts';
import { type Arena, heldBuffers } from '../memory/index.ts';
import { closeFd, Epoll, EPOLLET, EPOLLIN, errno, eventfd, eventfdSignal, Spin } from '../os/index.ts';
import type { Command, CommandResult, RingStart } from './commands.ts';
import { CTL, failure, NO_BUFFER } from './commands.ts';
import { Courtesy } from './courtesy.ts';
import type { Datapath } from './datapath.ts';
import { drainSignals } from './datapath.ts';
import { NicQueues } from './nic-queues.ts';

/** After arming, the thread keeps looking this long before it sleeps: no store is invisible for longer (R12). */
const LOOK_US = 20;
/** Longest sleep while any ring runs: what a lost wake-up can cost (R12). */
const SLEEP_MS = 100;
/** Longest spin without yielding, µs (src/os/spin.ts). */
const SPIN_ALONE_US = 64;

/**
 * While packets flow, a ring's user is interrupted when half of its ring is ready for it, and otherwise when nothing moves
 * any more or this many slots or µs have passed since: so one wake-up serves many packets, and no packet waits long.
 */
const HOLD_SLOTS = 2048;
const HOLD_US = 100;

interface Domain {
  readonly address: number;
  /** Set when a trap stopped it (R2). */
  error: string | undefined;
}

export interface KloopHooks {
  /** Takes the commands that wait, if any, and answers them. */
  takeMail(): void;
  /** A trap stopped a domain. */
  onTrap(domain: number, error: string): void;
  /** A queue of an interface could not be opened again. */
  onNic?(error: string): void;
  /** The thread is about to write to a client's eventfd and nobody watches its heartbeat. */
  onUnwatched(): void;
}

export class Kloop {
  readonly doorbell = eventfd();
  readonly #m: Views;
  readonly #datapath: Datapath;
  readonly #hooks: KloopHooks;
  readonly #ctl: Int32Array;
  readonly #epoll = new Epoll(64);
  #domains: Domain[] = [];
  /** Descriptor that interrupts the user of a ring, by kring address. */
  readonly #irqs = new Map<number, number>();
  readonly #running = new Set<number>();
  /** Rings whose users are to be interrupted, held back; and the slots that moved since the first of them was. */
  readonly #held = new Set<number>();
  #heldSlots = 0;
  #heldSince = 0;
  #holding = false;
  readonly #nics: NicQueues;
  #ended = false;
  #armed = false;
  readonly #spin = new Spin(SPIN_ALONE_US);
  readonly #courtesy: Courtesy;

  constructor(arena: Arena, datapath: Datapath, ctl: Int32Array, hooks: KloopHooks, courtesy = new Courtesy()) {
    this.#courtesy = courtesy;
    this.#m = arena.m;
    this.#datapath = datapath;
    this.#ctl = ctl;
    this.#hooks = hooks;
    this.#nics = new NicQueues(arena, datapath, this.#epoll, (error) => hooks.onNic?.(error));
    Atomics.store(ctl, CTL.DOORBELL, this.doorbell);
    this.#epoll.add(this.doorbell, EPOLLIN | EPOLLET, this.doorbell);
  }

  /** Serves every domain once (R8), and interrupts who asked for it. Returns the slots that moved. */
  turn(): number {
    const moved = this.#serve();
    this.#releaseHeld();
    return moved;
  }

  #serve(): number {
    let moved = 0;
    for (const domain of this.#domains) {
      if (domain.error !== undefined) continue;
      try {
        moved += this.#datapath.serve(domain.address);
        this.#signal(domain.address);
      } catch (e) {
        this.#trapped(domain, e);
      }
    }
    return this.#nics.any ? moved + this.#nics.turn() : moved;
  }

  /** Until `end`: turns, mail, sleep. */
  run(): void {
    let idleSince = 0;
    let armedAt = 0;
    while (!this.#ended) {
      if (Atomics.load(this.#ctl, CTL.MAIL) !== 0) {
        this.#hooks.takeMail();
        continue;
      }
      if (this.#armed) {
        // The look that lets the thread sleep begins so long after arming, also if the thread was held up in between.
        const begun = nowUs();
        if (this.#look()) {
          // Rings that moved are disarmed as they are served; the others' owners may kick, which costs a look.
          this.#armed = false;
          idleSince = 0;
        } else if (begun - armedAt >= LOOK_US) {
          this.#spin.slept(this.#sleep());
        }
        continue;
      }
      Atomics.add(this.#ctl, CTL.HEARTBEAT, 1);
      this.#holding = true;
      const moved = this.#serve();
      this.#holding = false;
      if (this.#held.size > 0) {
        if (this.#heldSlots === 0) this.#heldSince = nowUs();
        this.#heldSlots += moved;
        if (moved === 0 || this.#heldSlots >= HOLD_SLOTS || nowUs() - this.#heldSince >= HOLD_US) this.#releaseHeld();
      }
      if (moved > 0) {
        this.#giveWay();
        if (idleSince !== 0) this.#spin.paid();
        idleSince = 0;
        continue;
      }
      const now = nowUs();
      if (idleSince === 0) idleSince = now;
      if (now - idleSince >= this.#spin.us) {
        this.#spin.inVain();
        this.#arm();
        armedAt = nowUs();
      } else this.#spin.pause();
    }
  }

  /** Closes its descriptors, at the end of its life. */
  close(): void {
    this.#nics.close();
    this.#epoll.close();
    // Nobody rings what may be another's descriptor by then.
    Atomics.store(this.#ctl, CTL.DOORBELL, 0);
    closeFd(this.doorbell);
  }

  /** Carries out one command. Never throws. */
  execute(command: Command): CommandResult {
    try {
      return { value: this.#execute(command) };
    } catch (e) {
      return failure(e, `datapath: ${command.op}: `);
    }
  }

  #execute(command: Command): number {
    switch (command.op) {
      case 'domain-add':
        this.#domainAdd(command.domain, command.kind);
        return 0;
      case 'domain-remove':
        this.#domains = this.#domains.filter((d) => d.address !== command.domain);
        return 0;
      case 'port-attach':
        return this.#datapath.valeAttach(command.domain, command.port);
      case 'port-detach':
        // What a trap left of a domain is not touched any more; its memory goes with it.
        if (this.#failed(command.domain)) return 0;
        return this.#datapath.valeDetach(command.domain, command.port);
      case 'port-move':
        if (this.#failed(command.from) || this.#failed(command.to)) return -errno.EIO;
        this.#signal(command.from);
        return this.#datapath.valeMove(command.from, command.to, command.port);
      case 'monitor-attach':
        if (this.#failed(command.domain)) return -errno.EIO;
        return this.#datapath.monAttach(command.domain, command.port, command.kind);
      case 'monitor-link':
        if (this.#failed(command.domain)) return 0;
        for (const [monitor, k] of command.links) this.#datapath.monLink(monitor, k);
        return 0;
      case 'monitor-forget':
        if (!this.#failed(command.domain)) this.#datapath.monForget(command.port);
        return 0;
      case 'monitor-detach':
        if (this.#failed(command.domain)) return 0;
        return this.#datapath.monDetach(command.domain, command.port);
      case 'kick-add':
        this.#epoll.add(command.fd, EPOLLIN | EPOLLET, command.fd);
        return 0;
      case 'kick-remove':
        this.#epoll.remove(command.fd);
        return 0;
      case 'irq':
        for (const { kring: k, fd } of command.irqs) {
          if (fd >= 0) this.#irqs.set(k, fd);
          else this.#irqs.delete(k);
        }
        return 0;
      case 'start':
        return this.#start(command.port, command.vnetHdrLen, command.rings);
      case 'stop':
        for (const k of command.krings) this.#stop(k);
        return 0;
      case 'freeze':
        this.#nics.freeze(command.krings);
        for (const k of command.krings) this.#datapath.krFreeze(k);
        return 0;
      case 'held':
        for (const [i, k] of command.krings.entries()) {
          const into = command.into[i]!;
          into.fill(NO_BUFFER).set(heldBuffers(this.#m, k).slice(0, into.length));
        }
        return 0;
      case 'reset':
        for (const k of command.krings) this.#datapath.krReset(k);
        this.#nics.thaw(command.krings);
        return 0;
      case 'nic-up':
        this.#nics.up(command.queue);
        this.#armed = false;
        return 0;
      case 'nic-down':
        this.#nics.down(command.queue);
        return 0;
      case 'end':
        this.#ended = true;
        return 0;
    }
  }

  #domainAdd(address: number, kind: number | undefined): void {
    if (kind === DOMAIN_PIPE) this.#datapath.pipeInit(address);
    else if (kind === DOMAIN_NULL) this.#datapath.nullInit(address);
    else if (kind === DOMAIN_NIC) this.#datapath.nicInit(address);
    else this.#datapath.valeInit(address);
    this.#domains.push({ address, error: undefined });
  }

  #failed(domain: number): boolean {
    return this.#domains.find((d) => d.address === domain)?.error !== undefined;
  }

  /** CREATE. Returns 0 or a positive errno. */
  #start(port: number, vnetHdrLen: number, rings: readonly RingStart[]): number {
    if (this.#failed(portLayout.get.domain(this.#m, port))) return errno.EIO;
    for (const { kring: k, atok, ktoa } of rings) {
      if (this.#running.has(k)) return errno.EBUSY;
      kring.set.atok(this.#m, k, atok);
      kring.set.ktoa(this.#m, k, ktoa);
      const error = this.#datapath.krCheck(k);
      if (error !== 0) return -error;
    }
    portLayout.set.vnet_hdr_len(this.#m, port, vnetHdrLen);
    this.#nics.renew(rings.map((ring) => ring.kring));
    for (const { kring: k } of rings) {
      this.#datapath.krStart(k);
      this.#running.add(k);
    }
    // The next arming takes the kern_need_kick of CREATE from rx rings: left there, every rxsync of theirs kicks (R11).
    this.#armed = false;
    return 0;
  }

  #stop(k: number): void {
    if (!this.#running.delete(k)) return;
    if (this.#held.delete(k)) this.#interrupt(k);
    const address = portLayout.get.domain(this.#m, kring.get.port(this.#m, k));
    const domain = this.#domains.find((d) => d.address === address);
    if (domain === undefined) return;
    this.#guard(domain, () => {
      this.#datapath.krStop(k);
      this.#signal(address);
    });
  }

  /** Interrupts the users of a domain's rings that asked for it. */
  #signal(domain: number): void {
    drainSignals(this.#m, domain, this.#interrupt);
  }

  readonly #interrupt = (k: number): void => {
    if (this.#holding && !this.#halfReady(k)) {
      this.#held.add(k);
      return;
    }
    this.#held.delete(k);
    const fd = this.#irqs.get(k);
    if (fd === undefined) return;
    // A client may have made its eventfd blocking and full: then the devices thread frees this write (R15).
    if (Atomics.load(this.#ctl, CTL.WATCHED) === 0) this.#hooks.onUnwatched();
    Atomics.store(this.#ctl, CTL.WRITING, fd + 1);
    eventfdSignal(fd);
    Atomics.store(this.#ctl, CTL.WRITING, 0);
  };

  /** Whether half of a ring's slots are beyond its user's cur. */
  #halfReady(k: number): boolean {
    const n = kring.get.num_slots(this.#m, k);
    const ready = kring.get.hwtail(this.#m, k) - kring.get.rcur(this.#m, k);
    return (ready < 0 ? ready + n : ready) * 2 >= n;
  }

  /** Interrupts whose interrupts were held back, if they still want that. */
  #releaseHeld(): void {
    if (this.#held.size === 0) return;
    this.#heldSlots = 0;
    for (const k of this.#held) if (this.#wantsInterrupt(k)) this.#interrupt(k);
    this.#held.clear();
  }

  #wantsInterrupt(k: number): boolean {
    return Atomics.load(this.#m.i32, (kring.get.atok(this.#m, k) + nm_csb_atok.ofs.appl_need_kick) >>> 2) !== 0;
  }

  #arm(): void {
    for (const d of this.#domains) {
      this.#guard(d, () => {
        this.#datapath.arm(d.address);
        this.#signal(d.address);
      });
    }
    this.#armed = true;
  }

  #look(): boolean {
    for (const d of this.#domains) {
      let moved = 0;
      this.#guard(d, () => (moved = this.#datapath.look(d.address)));
      if (moved !== 0) return true;
    }
    return this.#nics.any && this.#nics.due;
  }

  /** Gives way to a receiver whose ring had no room in this turn, or as a sender was stopped before it. */
  #giveWay(): void {
    for (const { address } of this.#domains) {
      const full = domainLayout.get.full(this.#m, address);
      if (full === 0) continue;
      domainLayout.set.full(this.#m, address, 0);
      if (this.#running.has(full)) this.#courtesy.giveWay(full, this.#taken);
    }
  }

  /** Whether the user of a running ring has moved its head since it was looked at. */
  readonly #taken = (k: number): boolean =>
    Atomics.load(this.#m.i32, (kring.get.atok(this.#m, k) + nm_csb_atok.ofs.head) >>> 2) !==
    kring.get.rhead(this.#m, k);

  /** Sleeps until a kick, the doorbell or SLEEP_MS. Returns the µs slept. */
  #sleep(): number {
    const before = nowUs();
    Atomics.store(this.#ctl, CTL.ASLEEP, 1);
    // Edge-triggered and never read: an eventfd that was written since the last wait is reported once (R14).
    if (Atomics.load(this.#ctl, CTL.MAIL) === 0) {
      const n = this.#epoll.wait(this.#nics.sleepMs(this.#running.size > 0 ? SLEEP_MS : -1));
      if (this.#nics.any) {
        for (let i = 0; i < n; i++) this.#nics.ready(this.#epoll.data(i));
        this.#nics.slept();
      }
    }
    Atomics.store(this.#ctl, CTL.ASLEEP, 0);
    Atomics.add(this.#ctl, CTL.HEARTBEAT, 1);
    return nowUs() - before;
  }

  #guard(domain: Domain, action: () => void): void {
    if (domain.error !== undefined) return;
    try {
      action();
    } catch (e) {
      this.#trapped(domain, e);
    }
  }

  #trapped(domain: Domain, e: unknown): void {
    domain.error = e instanceof Error ? e.message : String(e);
    this.#hooks.onTrap(domain.address, domain.error);
  }
}

/** Monotonic time in µs. */
function nowUs(): number {
  return performance.now() * 1000;
}
