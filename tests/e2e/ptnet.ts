// The product as its users start it: a daemon and pkt-gens as processes of their own, through the `ptnet` command.

import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { DaemonStatus, PortStatus } from '../../src/abi/index.ts';
import { listDaemon } from '../../src/api/index.ts';
import type { PktGenResult } from '../../src/cli/pkt-gen/report.ts';

/** The checkout: this file runs from dist/tests/e2e. */
export const root = fileURLToPath(new URL('../../..', import.meta.url));
const main = join(root, 'dist/src/cli/main.js');

const running = new Set<ChildProcess>();
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

/** Patience for what takes seconds at most: only a hang gets there, however slow and busy the machine. */
export const PATIENCE_MS = 120_000;

/** Looks until it holds. */
export async function until(what: string, holds: () => boolean | Promise<boolean>): Promise<void> {
  for (const end = performance.now() + PATIENCE_MS; !(await holds()); await sleep(50)) {
    if (performance.now() > end) throw new Error(`in vain for ${PATIENCE_MS / 1000} s: ${what}`);
  }
}

/** Packets that a pkt-gen has received or sent, by the lines that it printed each interval; with -N exactly. */
export function reported(lines: string): number {
  const units: Readonly<Record<string, number>> = { '': 1, K: 1e3, M: 1e6 };
  const counts = [...lines.matchAll(/\(([\d.]+) ([KM]?)pkts /g)];
  return counts.reduce((sum, [, n, unit]) => sum + Number(n) * units[unit!]!, 0);
}

/** A `ptnet` process and what it printed. */
export class PtnetProcess {
  readonly child: ChildProcess;
  readonly exited: Promise<number | null>;
  stdout = '';
  stderr = '';
  readonly #changed = new Set<() => void>();

  /** @param args of ptnet @param within a command that starts it, e.g. ['unshare', '-n'] */
  constructor(args: readonly string[], within: readonly string[] = []) {
    const [program, ...rest] = [...within, process.execPath, main, ...args] as [string, ...string[]];
    const child = spawn(program, rest, { stdio: ['ignore', 'pipe', 'pipe'] });
    this.child = child;
    running.add(child);
    child.stdout.setEncoding('utf8').on('data', (text: string) => this.#add('stdout', text));
    child.stderr.setEncoding('utf8').on('data', (text: string) => this.#add('stderr', text));
    this.exited = new Promise((resolve) => {
      child.once('close', (code) => {
        running.delete(child);
        resolve(code);
        this.#wake();
      });
    });
  }

  /** Waits for a text in what it prints. */
  async says(pattern: RegExp, timeoutMs = PATIENCE_MS): Promise<void> {
    const end = Date.now() + timeoutMs;
    while (!pattern.test(this.stdout + this.stderr)) {
      if (this.child.exitCode !== null || Date.now() > end) {
        throw new Error(`ptnet never said ${pattern}: ${this.stdout}${this.stderr}`);
      }
      await Promise.race([new Promise<void>((resolve) => this.#changed.add(resolve)), sleep(200)]);
    }
  }

  /** Ends it by a signal if it still runs; resolves to its exit status. */
  async end(signal: NodeJS.Signals = 'SIGINT'): Promise<number | null> {
    if (this.child.exitCode === null) this.child.kill(signal);
    const late = setTimeout(() => this.child.kill('SIGKILL'), PATIENCE_MS);
    const code = await this.exited;
    clearTimeout(late);
    return code;
  }

  #add(stream: 'stdout' | 'stderr', text: string): void {
    this[stream] += text;
    this.#wake();
  }

  #wake(): void {
    for (const wake of this.#changed) wake();
    this.#changed.clear();
  }
}

/** A packet generator on the host. */
export class PktGen extends PtnetProcess {
  constructor(runDir: string, port: string, args: readonly string[]) {
    super(['pkt-gen', '--run-dir', runDir, '-i', port, '--json', '-N', '-T', '100', ...args]);
  }

  /** Waits until it has counted so many packets: what it is ended before is not among them. */
  async counted(packets: number): Promise<void> {
    await until(`${packets} packets, ${this.stderr}`, () => {
      if (this.child.exitCode !== null) throw new Error(`it has ended: ${this.stdout}${this.stderr}`);
      return reported(this.stderr) >= packets;
    });
  }

  /** Starts one and waits until its port is open. */
  static async start(runDir: string, port: string, args: readonly string[]): Promise<PktGen> {
    const generator = new PktGen(runDir, port, args);
    await generator.says(/queues, 1 threads/);
    return generator;
  }

  /** Waits for its own end, and ends it if that does not come; reads its result. */
  async result(timeoutMs = PATIENCE_MS): Promise<PktGenResult> {
    const ended = await Promise.race([this.exited.then(() => true), sleep(timeoutMs, false, { ref: false })]);
    if (!ended) await this.end('SIGINT');
    const line = this.stdout.split('\n').find((l) => l.startsWith('{'));
    if (line === undefined) throw new Error(`pkt-gen on the host gave no result: ${this.stdout}${this.stderr}`);
    return JSON.parse(line) as PktGenResult;
  }
}

export interface VmPorts {
  readonly ports: readonly string[];
  readonly bar64?: boolean;
}

export interface DaemonOptions {
  readonly runDir: string;
  readonly vms: Readonly<Record<string, VmPorts>>;
  /** Shape of all ports. */
  readonly ports?: Readonly<Record<string, number>>;
  readonly threads?: number;
}

/** What a process holds that it might forget to give back. */
export interface Holdings {
  readonly descriptors: number;
  /** Mappings of guests' memory, and descriptors of it. */
  readonly guestMemory: number;
  readonly freeBuffers: Readonly<Record<string, number>>;
  readonly regions: number;
}

export class PtnetDaemon extends PtnetProcess {
  readonly runDir: string;

  /** @param config the path of a configuration file */
  constructor(runDir: string, config: string) {
    super(['host', '--config', config, '--log-level', 'info']);
    this.runDir = runDir;
  }

  static async start(options: DaemonOptions): Promise<PtnetDaemon> {
    const { runDir, ...rest } = options;
    const config = `${runDir}.yaml`;
    writeFileSync(config, JSON.stringify({ runDir, ...rest })); // JSON is YAML
    const daemon = new PtnetDaemon(runDir, config);
    await daemon.says(/"ptnet \S+ runs in/);
    return daemon;
  }

  status(): Promise<DaemonStatus> {
    return listDaemon(this.runDir);
  }

  async port(name: string): Promise<PortStatus> {
    const { domains } = await this.status();
    const found = domains.flatMap((d) => d.ports).find((p) => p.name === name);
    if (found === undefined) throw new Error(`the daemon has no port ${name}`);
    return found;
  }

  /** Sockets of a VM's devices, in QEMU's order. */
  async sockets(vm: string): Promise<readonly string[]> {
    const found = (await this.status()).vms.find((v) => v.name === vm);
    if (found === undefined) throw new Error(`the daemon has no VM ${vm}`);
    return found.sockets;
  }

  async holdings(): Promise<Holdings> {
    const { regions } = await this.status();
    const proc = `/proc/${this.child.pid}`;
    const links = readdirSync(`${proc}/fd`).map((fd) => {
      try {
        return readlinkSync(`${proc}/fd/${fd}`);
      } catch {
        return ''; // closed meanwhile
      }
    });
    const maps = readFileSync(`${proc}/maps`, 'utf8').split('\n');
    const isGuest = (line: string): boolean => line.includes('memory-backend-memfd');
    return {
      descriptors: links.length,
      guestMemory: links.filter(isGuest).length + maps.filter(isGuest).length,
      freeBuffers: Object.fromEntries(regions.map((r) => [r.name, r.freeBuffers])),
      regions: regions.length,
    };
  }

  /** The daemon's own bytes of a region: the file behind its memfd. */
  regionFile(region: string): string {
    const folder = `/proc/${this.child.pid}/fd`;
    for (const fd of readdirSync(folder)) {
      const path = join(folder, fd);
      if (existsSync(path) && readlinkSync(path).startsWith(`/memfd:ptnet:${region} `)) return path;
    }
    throw new Error(`the daemon has no region ${region}`);
  }
}

/** Runs a `ptnet` command to its end. */
export function ptnet(args: readonly string[]): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise((resolve) => {
    execFile(process.execPath, [main, ...args], (error, stdout, stderr) => {
      resolve({ code: error === null ? 0 : Number(error.code ?? 1), stdout, stderr });
    });
  });
}
