/**
 * A daemon and guests as processes of their own, in a temporary run directory: what `ptnet demo` and the benches run.
 * Everything started here ends with `stop`, whatever happened.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { type DaemonStatus, listDaemon, stopDaemon } from '../api/index.ts';
import type { PktGenResult } from './pkt-gen/report.ts';

/** The ptnet command, compiled. */
const MAIN = fileURLToPath(new URL('main.js', import.meta.url));
/** How long a daemon or a port may take to come up, ms: much more than it needs. */
const START_MS = 20_000;
/** Time unit of /proc/PID/stat, seconds (USER_HZ is 100 on Linux). */
const TICK = 0.01;

type PortStatus = DaemonStatus['domains'][number]['ports'][number];

/** A `ptnet` process; what it wrote to stderr is kept for when it fails. */
class Process {
  readonly child: ChildProcess;
  readonly #what: string;
  #stdout = '';
  #stderr = '';
  readonly exited: Promise<void>;

  constructor(args: readonly string[], script = MAIN) {
    this.#what = `ptnet ${args.join(' ')}`;
    this.child = spawn(process.execPath, ['--no-memory-reducer', script, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
    });
    this.child.stdout?.on('data', (text: Buffer) => (this.#stdout += text.toString()));
    this.child.stderr?.on('data', (text: Buffer) => (this.#stderr += text.toString()));
    this.exited = once(this.child, 'close').then(() => undefined);
  }

  get ended(): boolean {
    return this.child.exitCode !== null || this.child.signalCode !== null;
  }

  /** Waits for the end. @returns its stdout @throws Error with what it said if it failed */
  async output(): Promise<string> {
    await this.exited;
    if (this.child.exitCode === 0) return this.#stdout;
    throw this.failure();
  }

  failure(): Error {
    const { exitCode, signalCode } = this.child;
    return new Error(`"${this.#what}" ended with ${signalCode ?? `status ${exitCode}`}: ${this.#stderr.trim()}`);
  }
}

/** A running pkt-gen. */
export interface Guest {
  readonly pid: number;
  /** The report of its run, once it has ended. */
  readonly result: Promise<PktGenResult>;
  /** Ends it as Ctrl-C does. */
  interrupt(): void;
}

export class Lab {
  readonly runDir: string;
  readonly #daemon: Process;
  readonly #guests: Process[] = [];

  private constructor(args: readonly string[]) {
    this.runDir = mkdtempSync(join(tmpdir(), 'ptnet-lab-'));
    this.#daemon = new Process(['host', '--run-dir', this.runDir, '--log-level', 'error', ...args]);
  }

  /** Starts a daemon and waits until it answers. @param args more flags of `ptnet host` */
  static async start(args: readonly string[] = []): Promise<Lab> {
    const lab = new Lab(args);
    try {
      await lab.#until('the daemon', async () => {
        if (lab.#daemon.ended) throw lab.#daemon.failure();
        return listDaemon(lab.runDir).catch(() => undefined);
      });
      return lab;
    } catch (e) {
      await lab.stop();
      throw e;
    }
  }

  get daemonPid(): number {
    return this.#daemon.child.pid!;
  }

  status(): Promise<DaemonStatus> {
    return listDaemon(this.runDir);
  }

  /** Starts a guest process with options of pkt-gen. */
  pktGen(args: readonly string[]): Guest {
    return this.#guest(new Process(['pkt-gen', '--run-dir', this.runDir, '--json', ...args]));
  }

  /** Starts another command of ptnet, which runs until Ctrl-C. @returns what ends it as that does */
  command([name = '', ...args]: readonly string[]): { end(): Promise<void> } {
    const guest = new Process([name, '--run-dir', this.runDir, ...args]);
    this.#guests.push(guest);
    return {
      end: async () => {
        guest.child.kill('SIGINT');
        await guest.exited;
      },
    };
  }

  /** Starts a script of the caller's, with the run directory in front of its arguments; it reports as pkt-gen does. */
  script(path: string, args: readonly string[]): Guest {
    return this.#guest(new Process(['--run-dir', this.runDir, ...args], path));
  }

  #guest(guest: Process): Guest {
    this.#guests.push(guest);
    const result = guest.output().then((text) => JSON.parse(text) as PktGenResult);
    result.catch(() => undefined); // who awaits it sees the error
    return { pid: guest.child.pid!, result, interrupt: () => void guest.child.kill('SIGINT') };
  }

  port(status: DaemonStatus, name: string): PortStatus | undefined {
    return status.domains.flatMap((d) => d.ports).find((p) => p.name === name);
  }

  /** Waits until a port's rings run. */
  running(name: string): Promise<PortStatus> {
    return this.#until(`port ${name}`, async () => {
      const failed = this.#guests.find((g) => g.ended && g.child.exitCode !== 0);
      if (failed !== undefined) throw failed.failure();
      const port = this.port(await this.status(), name);
      return port?.running === true ? port : undefined;
    });
  }

  /** Waits until a port is gone. */
  async closed(name: string): Promise<void> {
    await this.#until(`the end of port ${name}`, async () =>
      this.port(await this.status(), name) === undefined ? true : undefined,
    );
  }

  /** CPU time of the daemon so far, all threads, seconds. */
  cpuSeconds(): number {
    const stat = readFileSync(`/proc/${this.daemonPid}/stat`, 'utf8');
    // The name (field 2) may contain anything; utime and stime are fields 14 and 15 (proc(5)).
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return (Number(fields[11]) + Number(fields[12])) * TICK;
  }

  /** Ends guests and daemon and removes the run directory. @throws Error if the daemon did not end well */
  async stop(): Promise<void> {
    for (const guest of this.#guests) if (!guest.ended) guest.child.kill('SIGKILL');
    try {
      if (!this.#daemon.ended) {
        await stopDaemon(this.runDir).catch(() => this.#daemon.child.kill('SIGTERM'));
        // R20: it ends within 2 s.
        await Promise.race([this.#daemon.exited, setTimeout(5000, undefined, { ref: false })]);
      }
      if (!this.#daemon.ended) {
        this.#daemon.child.kill('SIGKILL');
        throw new Error('the daemon did not end within 5 s of "ptnet stop"');
      }
      if (this.#daemon.child.exitCode !== 0) throw this.#daemon.failure();
    } finally {
      rmSync(this.runDir, { recursive: true, force: true });
    }
  }

  async #until<T>(what: string, look: () => Promise<T | undefined>): Promise<T> {
    for (const end = performance.now() + START_MS; performance.now() < end; await setTimeout(20)) {
      const found = await look();
      if (found !== undefined) return found;
    }
    throw new Error(`waited ${START_MS / 1000} s for ${what}`);
  }
}
