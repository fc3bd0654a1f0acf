/** A daemon in this process, and ports of it driven by hand. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { DomainStatus, PortStatus, RegionStatus } from '../../../src/abi/index.ts';
import type { NetmapPort, NetmapRing, OpenPortOptions } from '../../../src/api/index.ts';
import { listDaemon, openPort, POLLIN, POLLOUT } from '../../../src/api/index.ts';
import { NetmapPort as Port } from '../../../src/api/port.ts';
import { connectVfioUserPci, Memdev, PtnetDriver } from '../../../src/guest/index.ts';
import type { DaemonConfig } from '../../../src/host/config.ts';
import { defaultConfig } from '../../../src/host/config.ts';
import { type Daemon, startDaemon } from '../../../src/host/daemon.ts';

export class Lab {
  readonly daemon: Daemon;
  readonly runDir: string;
  readonly #dir: string;
  readonly #ports = new Set<NetmapPort>();

  private constructor(daemon: Daemon, dir: string, runDir: string) {
    this.daemon = daemon;
    this.#dir = dir;
    this.runDir = runDir;
  }

  static async start(config: Partial<DaemonConfig> = {}): Promise<Lab> {
    const dir = mkdtempSync(join(tmpdir(), 'ptnet-ports-'));
    const runDir = join(dir, 'run');
    const daemon = await startDaemon({ ...defaultConfig(), runDir, logLevel: 'silent', ...config }, 'test');
    return new Lab(daemon, dir, runDir);
  }

  async open(name: string, options: OpenPortOptions = {}): Promise<NetmapPort> {
    const port = await openPort(name, { runDir: this.runDir, ...options });
    this.#ports.add(port);
    return port;
  }

  async close(...ports: NetmapPort[]): Promise<void> {
    for (const port of ports) {
      this.#ports.delete(port);
      await port.close();
    }
  }

  /** Waits until the daemon's list satisfies a condition. */
  async until(
    condition: (domains: readonly DomainStatus[], regions: readonly RegionStatus[]) => boolean,
  ): Promise<void> {
    for (let i = 0; ; i++) {
      const { domains, regions } = await listDaemon(this.runDir);
      if (condition(domains, regions)) return;
      assert.ok(i < 1000, `still ${JSON.stringify({ domains, regions })}`);
      await new Promise((resolve) => setTimeout(resolve, 5));
    }
  }

  async regions(): Promise<readonly RegionStatus[]> {
    return (await listDaemon(this.runDir)).regions;
  }

  async ports(): Promise<readonly PortStatus[]> {
    return (await listDaemon(this.runDir)).domains.flatMap((d) => d.ports);
  }

  async closeAll(): Promise<void> {
    await this.close(...this.#ports);
  }

  async stop(): Promise<void> {
    await this.closeAll();
    await this.daemon.stop('test over');
    rmSync(this.#dir, { recursive: true, force: true });
  }
}

/** Ports of a machine in one region, driven in this process as the drivers in it would. */
export async function bootMachine(
  memdevSocket: string,
  ptnetSockets: readonly string[],
): Promise<{ ports: NetmapPort[]; off: () => Promise<void> }> {
  const pci = await connectVfioUserPci(memdevSocket, 'memdev');
  const memdev = await Memdev.attach(pci);
  const ports = await Promise.all(
    ptnetSockets.map(async (socket) => {
      const ptnet = await connectVfioUserPci(socket, 'ptnet');
      const driver = await PtnetDriver.attach(ptnet, memdev);
      await driver.create();
      return new Port(socket, driver, memdev, async () => ptnet.close());
    }),
  );
  return {
    ports,
    off: async () => {
      for (const port of ports) await port.close();
      memdev.detach();
      await pci.close();
    },
  };
}

/** Fills as many slots as there is room for, each with the next number; returns how many. */
export function fill(port: NetmapPort, ring: NetmapRing, from: number, count: number): number {
  let n = 0;
  for (; n < count && ring.head !== ring.tail; n++) {
    new DataView(port.m.u8.buffer).setUint32(ring.bufOfs(ring.head), from + n);
    ring.setLen(ring.head, 60);
    ring.setFlags(ring.head, 0);
    ring.head = ring.cur = ring.next(ring.head);
  }
  port.txsync();
  return n;
}

/** Takes what there is; returns the numbers in the packets. */
export function take(port: NetmapPort, ring: NetmapRing, max = Number.POSITIVE_INFINITY): number[] {
  const numbers: number[] = [];
  port.rxsync();
  for (; numbers.length < max && ring.head !== ring.tail; ring.head = ring.cur = ring.next(ring.head)) {
    if (ring.len(ring.head) === 0) continue;
    numbers.push(new DataView(port.m.u8.buffer).getUint32(ring.bufOfs(ring.head)));
  }
  port.rxsync();
  return numbers;
}

/** Sends numbers first .. first + count - 1 through a pipe and takes them at its other end, after `waiting` that are in it. */
export function pump(from: NetmapPort, to: NetmapPort, first: number, count: number, waiting = 0): number[] {
  const got: number[] = [];
  let sent = 0;
  const deadline = performance.now() + 20_000;
  while (got.length < count + waiting) {
    assert.ok(performance.now() < deadline, `sent ${sent}, received ${got.length} of ${count + waiting}`);
    if (sent < count) sent += fill(from, from.txRings[0]!, first + sent, count - sent);
    if (to.poll(POLLIN, 20) !== 0) got.push(...take(to, to.rxRings[0]!));
    if (sent < count) from.poll(POLLOUT, 0);
  }
  return got;
}

export const range = (from: number, count: number): number[] => Array.from({ length: count }, (_, i) => from + i);
