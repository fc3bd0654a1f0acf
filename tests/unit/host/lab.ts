/** A daemon in this process, with its real threads, and hostile clients of its sockets. */
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import type { DaemonStatus } from '../../../src/abi/index.ts';
import { parseConfig } from '../../../src/host/config.ts';
import { type Daemon, startDaemon } from '../../../src/host/daemon.ts';
import { VfioUserClient } from '../../../src/vfio-user/index.ts';
import { RawGuest } from '../device/rig.ts';

export { openFds } from '../device/rig.ts';

/** Looks again and again, for at most 10 s. */
export async function eventually(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  for (let i = 0; i < 1000; i++) {
    if (await holds()) return;
    await setTimeout(10);
  }
  throw new Error(`still not so after 10 s: ${what}`);
}

export class DaemonLab {
  readonly dir: string;
  readonly daemon: Daemon;
  /** What the daemon logged, warnings and worse. */
  readonly logged: string[];

  private constructor(dir: string, daemon: Daemon, logged: string[]) {
    this.dir = dir;
    this.daemon = daemon;
    this.logged = logged;
  }

  /** @param yaml the configuration, without runDir */
  static async start(yaml = ''): Promise<DaemonLab> {
    const dir = mkdtempSync(join(tmpdir(), 'ptnet-host-'));
    const config = parseConfig(`runDir: ${dir}\nlogLevel: warn\n${yaml}`, 'test');
    const logged: string[] = [];
    const daemon = await startDaemon(config, 'test');
    for (const level of ['warn', 'error', 'fatal'] as const) {
      daemon.log[level] = ((...args: unknown[]) => void logged.push(String(args.at(-1)))) as never;
    }
    return new DaemonLab(dir, daemon, logged);
  }

  get status(): DaemonStatus {
    return this.daemon.status();
  }

  get controlSocket(): string {
    return join(this.dir, 'control.sock');
  }

  port(name: string): DaemonStatus['domains'][number]['ports'][number] | undefined {
    return this.status.domains.flatMap((d) => d.ports).find((p) => p.name === name);
  }

  /** Connects to a VM's i-th ptnet device. */
  async connect(vm: string, i = 0): Promise<VfioUserClient> {
    const client = await VfioUserClient.connect(join(this.dir, 'vm', vm, `ptnet${i}.sock`));
    await client.negotiate();
    return client;
  }

  async guest(vm: string, i = 0): Promise<RawGuest> {
    return new RawGuest(await this.connect(vm, i));
  }

  async waitForLog(says: RegExp): Promise<void> {
    await eventually(`the log says ${String(says)}: ${this.logged.join(' | ')}`, () =>
      this.logged.some((l) => says.test(l)),
    );
  }

  async stop(): Promise<void> {
    await this.daemon.stop('the test is over');
    rmSync(this.dir, { recursive: true, force: true });
  }
}

export async function withDaemon(yaml: string, body: (lab: DaemonLab) => Promise<void>): Promise<void> {
  const lab = await DaemonLab.start(yaml);
  try {
    await body(lab);
  } finally {
    await lab.stop();
  }
}

/** Names of a directory. */
export const list = (path: string): string[] => readdirSync(path).toSorted();
