// The daemon and the virtual machines of a run of e2e/real-guest: started when a step needs them, in one of several set-ups.

import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { PortStatus } from '../../../src/abi/index.ts';
import { type Holdings, PktGen, PtnetDaemon } from '../ptnet.ts';
import { QemuGuest } from '../qemu.ts';
import { Guest } from './guest.ts';
import { Watch } from './watch.ts';

/** What a run is given. */
export interface Image {
  readonly qemu: string;
  readonly kernel?: string;
  readonly initrd?: string;
  readonly disk?: string;
  readonly memoryMiB: number;
  readonly logFolder?: string;
}

/** How machines and their ports are made. */
export interface Setup {
  readonly machine: 'pc' | 'q35';
  readonly cpus: number;
  readonly bar64: boolean;
  /** tx and rx rings of every port. */
  readonly queuePairs: number;
}

export const defaultSetup: Setup = { machine: 'pc', cpus: 1, bar64: true, queuePairs: 1 };

/**
 * Two machines on a switch, one that only watches what arrives at the second, and two with a port on each of two switches:
 * both in one region, and in two.
 */
const vms = {
  a: ['vale0:a'],
  b: ['vale0:b'],
  watcher: ['vale0:b/r'],
  mid: ['vale0:mid', 'vale1:mid'],
  two: ['vale0:two', 'vale1:two@second'],
} as const;
export type VmName = keyof typeof vms;

export class Lab {
  readonly #image: Image;
  readonly #setup: Setup;
  readonly #folder = mkdtempSync(join(tmpdir(), 'real-guest-'));
  readonly #guests = new Map<VmName, Guest>();
  readonly #generators = new Set<PktGen>();
  readonly #watching = new Set<Watch>();
  #watches = 0;
  #daemon: PtnetDaemon | undefined;
  #atStart: Holdings | undefined;

  constructor(image: Image, setup: Setup) {
    this.#image = image;
    this.#setup = setup;
  }

  get setup(): Setup {
    return this.#setup;
  }

  get daemon(): PtnetDaemon {
    if (this.#daemon === undefined) throw new Error('the daemon does not run yet');
    return this.#daemon;
  }

  /** What the daemon held before any machine was there. */
  get atStart(): Holdings {
    return this.#atStart!;
  }

  async start(): Promise<void> {
    const { bar64, queuePairs } = this.#setup;
    this.#daemon = await PtnetDaemon.start({
      runDir: join(this.#folder, 'run'),
      vms: Object.fromEntries(Object.entries(vms).map(([name, ports]) => [name, { ports, bar64 }])),
      ports: { txRings: queuePairs, rxRings: queuePairs },
    });
    this.#atStart = await this.#daemon.holdings();
  }

  /** A machine that runs, its driver loaded. */
  async vm(name: VmName): Promise<Guest> {
    const existing = this.#guests.get(name);
    if (existing !== undefined) return existing;
    const { qemu, kernel, initrd, disk, memoryMiB, logFolder } = this.#image;
    if (logFolder !== undefined) mkdirSync(logFolder, { recursive: true });
    const machine = await QemuGuest.start({
      qemu,
      ...(kernel === undefined ? {} : { kernel }),
      ...(initrd === undefined ? {} : { initrd }),
      ...(disk === undefined ? {} : { disk }),
      ...(logFolder === undefined ? {} : { logFile: join(logFolder, `${name}.log`) }),
      memoryMiB,
      machine: this.#setup.machine,
      cpus: this.#setup.cpus,
      devices: (await this.daemon.sockets(name)).map((path) =>
        JSON.stringify({ driver: 'vfio-user-pci', socket: { type: 'unix', path }, 'x-msg-timeout': 60_000 }),
      ),
    });
    const guest = new Guest(name, machine);
    this.#guests.set(name, guest);
    try {
      await guest.booted();
    } catch (e) {
      await this.drop(name);
      throw e;
    }
    return guest;
  }

  /** The machines a and b, with addresses, able to ping each other. */
  async pair(): Promise<[Guest, Guest]> {
    const [a, b] = [await this.vm('a'), await this.vm('b')];
    await a.up('10.7.0.1/24');
    await b.up('10.7.0.2/24');
    return [a, b];
  }

  /** Ends a machine as kill -9 does; `vm` makes a new one. */
  async drop(name: VmName): Promise<void> {
    const guest = this.#guests.get(name);
    this.#guests.delete(name);
    await guest?.machine.close();
  }

  async dropAll(): Promise<void> {
    for (const name of this.#guests.keys()) await this.drop(name);
    for (const generator of this.#generators) await generator.end();
    this.#generators.clear();
    for (const watch of this.#watching) await watch.close();
    this.#watching.clear();
  }

  /** pkt-gen on the host, on a port of its own. */
  async pktGen(port: string, args: readonly string[]): Promise<PktGen> {
    const generator = await PktGen.start(this.daemon.runDir, port, args);
    this.#generators.add(generator);
    return generator;
  }

  /** Watches a port through a monitor of it. @param port with the flags of a monitor: vale0:a/t */
  async watch(port: string): Promise<Watch> {
    this.#watches += 1;
    const watch = await Watch.start(this.daemon.runDir, port, join(this.#folder, `${this.#watches}.pcapng`));
    this.#watching.add(watch);
    return watch;
  }

  port(name: string): Promise<PortStatus> {
    return this.daemon.port(name);
  }

  /** The port of the machine that watches: the daemon numbers monitors. */
  async watcher(): Promise<PortStatus> {
    const { domains } = await this.daemon.status();
    const found = domains.flatMap((d) => d.ports).find(({ owner }) => 'vm' in owner && owner.vm === 'watcher');
    if (found === undefined) throw new Error('the daemon has no monitor of the machine that watches');
    return found;
  }

  /** Packets that the daemon dropped at a port's rx rings, for whatever reason. */
  async dropped(port: string): Promise<number> {
    const { rxRings } = await this.port(port);
    return rxRings.flatMap((r) => Object.values(r.drops)).reduce((sum, n) => sum + n, 0);
  }

  /** Waits until something holds. */
  async until(what: string, holds: () => Promise<boolean>, timeoutMs = 10_000): Promise<void> {
    const end = Date.now() + timeoutMs;
    while (!(await holds())) {
      if (Date.now() > end) throw new Error(`waited ${timeoutMs} ms in vain that ${what}`);
      await sleep(100);
    }
  }

  async close(): Promise<void> {
    await this.dropAll();
    await this.#daemon?.end('SIGTERM');
    rmSync(this.#folder, { recursive: true, force: true });
  }
}
