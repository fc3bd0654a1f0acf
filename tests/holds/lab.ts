/** A daemon and guests as processes of their own, and what /proc says of them. */
import { type ChildProcessByStdio, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Readable, Writable } from 'node:stream';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { type DaemonStatus, listDaemon } from '../../src/api/index.ts';

const MAIN = fileURLToPath(new URL('../../src/cli/main.js', import.meta.url));
export const long = process.env['PTNET_LONG'] === '1';

/** Patience for what takes milliseconds: only a hang gets there. */
const PATIENCE_MS = long ? 900_000 : 60_000;

export type PortStatus = DaemonStatus['domains'][number]['ports'][number];

/** A Node process whose lines are kept. */
export class Process {
  readonly child: ChildProcessByStdio<Writable, Readable, Readable>;
  readonly lines: string[] = [];
  stderr = '';
  /** It has ended, and all it wrote has been read. */
  closed = false;
  readonly exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
  readonly #what: string;
  #rest = '';

  constructor(args: readonly string[], env: NodeJS.ProcessEnv = {}) {
    this.#what = args.slice(0, 5).join(' ');
    // The flag is ./ptnet's.
    this.child = spawn(process.execPath, ['--no-memory-reducer', ...args], {
      stdio: ['pipe', 'pipe', 'pipe'],
      env: { ...process.env, NODE_OPTIONS: '', ...env },
    });
    this.child.stdin.on('error', () => undefined);
    this.child.stdout.on('data', (data: Buffer) => {
      const parts = (this.#rest + data.toString()).split('\n');
      this.#rest = parts.pop()!;
      this.lines.push(...parts);
    });
    this.child.stderr.on('data', (data: Buffer) => (this.stderr += data.toString()));
    this.child.once('close', () => (this.closed = true));
    this.exited = once(this.child, 'close').then(([code, signal]) => ({
      code: code as number | null,
      signal: signal as NodeJS.Signals | null,
    }));
  }

  get pid(): number {
    return this.child.pid!;
  }

  get ended(): boolean {
    return this.child.exitCode !== null || this.child.signalCode !== null;
  }

  /** The first line that matches. @throws Error with what it said, if it ends before */
  async line(pattern: RegExp): Promise<RegExpExecArray> {
    return until(`${this.#what} says ${String(pattern)}`, () => {
      for (const l of this.lines) {
        const found = pattern.exec(l);
        if (found !== null) return found;
      }
      if (this.closed) throw this.failure();
      return undefined;
    });
  }

  /** Waits for an end with status 0. */
  async success(): Promise<void> {
    const { code } = await this.exited;
    if (code !== 0) throw this.failure();
  }

  failure(): Error {
    const { exitCode, signalCode } = this.child;
    return new Error(`"${this.#what}" ended with ${signalCode ?? exitCode}: ${this.stderr.trim().slice(-2000)}`);
  }

  kill(signal: NodeJS.Signals = 'SIGKILL'): void {
    this.child.kill(signal);
  }
}

/** Looks until there is something. */
export async function until<T>(what: string, look: () => T | undefined | Promise<T | undefined>): Promise<T> {
  for (const end = performance.now() + PATIENCE_MS; performance.now() < end; await setTimeout(5)) {
    const found = await look();
    if (found !== undefined && found !== false) return found;
  }
  throw new Error(`waited ${PATIENCE_MS / 1000} s: ${what}`);
}

/** What a process holds. */
export interface Holdings {
  readonly fds: number;
  /** All mappings; V8's own come and go. */
  readonly mappings: number;
  /** Shared ones: regions and CSB pages. */
  readonly shared: number;
  readonly shmemKb: number;
}

export function holdings(pid: number): Holdings {
  const maps = readFileSync(`/proc/${pid}/maps`, 'utf8').split('\n');
  const shmemKb = Number(/^RssShmem:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))![1]);
  const shared = maps.filter((line) => / ...s /.test(line)).length;
  return { fds: readdirSync(`/proc/${pid}/fd`).length, mappings: maps.length, shared, shmemKb };
}

/** What each thread of a process has done: clock ticks, voluntary switches (/proc/PID/task/N). */
export function threadTimes(pid: number): Map<string, { ticks: number; switches: number }> {
  const times = new Map<string, { ticks: number; switches: number }>();
  for (const task of readdirSync(`/proc/${pid}/task`)) {
    const stat = readFileSync(`/proc/${pid}/task/${task}/stat`, 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    const status = readFileSync(`/proc/${pid}/task/${task}/status`, 'utf8');
    const switches = Number(/^voluntary_ctxt_switches:\s+(\d+)/m.exec(status)![1]);
    times.set(task, { ticks: Number(fields[11]) + Number(fields[12]), switches });
  }
  return times;
}

export class HoldsLab {
  readonly dir: string;
  daemon: Process;
  readonly guests: Process[] = [];
  readonly #args: readonly string[];

  private constructor(args: readonly string[], env: NodeJS.ProcessEnv) {
    this.dir = mkdtempSync(join(tmpdir(), 'ptnet-holds-'));
    this.#args = ['host', '--run-dir', this.dir, '--log-level', 'warn', ...args];
    this.daemon = new Process([MAIN, ...this.#args], env);
  }

  static async start(args: readonly string[] = [], env: NodeJS.ProcessEnv = {}): Promise<HoldsLab> {
    const lab = new HoldsLab(args, env);
    try {
      await lab.up();
      return lab;
    } catch (e) {
      await lab.stop();
      throw e;
    }
  }

  /** A daemon in the same run directory, after the last has ended. */
  async restart(): Promise<void> {
    this.daemon = new Process([MAIN, ...this.#args]);
    await this.up();
  }

  async up(): Promise<void> {
    await until('the daemon answers', async () => {
      if (this.daemon.ended) throw this.daemon.failure();
      return await this.status().catch(() => undefined);
    });
  }

  status(): Promise<DaemonStatus> {
    return listDaemon(this.dir);
  }

  async port(name: string): Promise<PortStatus | undefined> {
    return (await this.status()).domains.flatMap((d) => d.ports).find((p) => p.name === name);
  }

  /** Starts a script of guests/. */
  guest(script: string, ...args: readonly (string | number)[]): Process {
    const path = fileURLToPath(new URL(`guests/${script}.js`, import.meta.url));
    const guest = new Process([path, this.dir, ...args.map(String)]);
    this.guests.push(guest);
    return guest;
  }

  /** Waits until no port is left. */
  async quiet(): Promise<void> {
    await until('all ports are gone', async () => {
      const { domains, regions } = await this.status();
      return domains.length === 0 && regions.length === 0 ? true : undefined;
    });
  }

  /** What the daemon holds, as soon as it is the same twice in a row: nothing is on its way any more. */
  async holdings(): Promise<Holdings & { freeRanges: readonly (readonly [number, number])[] }> {
    let last = '';
    return until('the daemon is at rest', async () => {
      const { arenas } = await this.status();
      await setTimeout(50);
      const now = { ...holdings(this.daemon.pid), freeRanges: arenas.flatMap((a) => a.freeRanges) };
      const text = JSON.stringify(now);
      if (text === last) return now;
      last = text;
      return undefined;
    });
  }

  async stop(): Promise<void> {
    for (const guest of this.guests) if (!guest.ended) guest.kill();
    await Promise.all(this.guests.map((g) => g.exited));
    if (!this.daemon.ended) {
      this.daemon.kill('SIGTERM');
      await Promise.race([this.daemon.exited, setTimeout(10_000, undefined, { ref: false })]);
      if (!this.daemon.ended) this.daemon.kill();
    }
    rmSync(this.dir, { recursive: true, force: true });
  }
}

/** Runs with a daemon of its own. */
export async function withLab(body: (lab: HoldsLab) => Promise<void>, args: readonly string[] = []): Promise<void> {
  const lab = await HoldsLab.start(args);
  try {
    await body(lab);
  } finally {
    await lab.stop();
  }
}
