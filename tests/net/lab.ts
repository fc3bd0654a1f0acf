/**
 * A daemon and hosts for the network tests. A host is a `ptnet up` process in a network namespace of its own, which goes with
 * it: nothing is left behind, and nothing of the machine's own network is touched.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { listDaemon } from '../../src/api/index.ts';

/** Patience for what takes a moment: only a hang gets there. */
const PATIENCE_MS = 60_000;
const root = fileURLToPath(new URL('../../..', import.meta.url));
export const MAIN = join(root, 'dist/src/cli/main.js');

/** Why network tests cannot run here, or false. @param tools programs that a test needs */
export function netSkip(...tools: string[]): string | false {
  if (process.getuid!() !== 0) return 'needs root: network namespaces and TAP interfaces';
  const unshare = spawnSync('unshare', ['-n', 'test', '-w', '/dev/net/tun']);
  if (unshare.status !== 0) return 'needs network namespaces (unshare) and /dev/net/tun';
  const missing = tools.filter((tool) => spawnSync('which', [tool]).status !== 0);
  return missing.length > 0 ? `needs ${missing.join(', ')} (apt-get install ${missing.map(debian).join(' ')})` : false;
}

const debian = (tool: string): string => (tool === 'ping' ? 'iputils-ping' : tool);

export interface Result {
  readonly status: number;
  readonly stdout: string;
  readonly stderr: string;
}

async function finished(child: ChildProcess, seconds: number): Promise<Result> {
  let stdout = '';
  let stderr = '';
  child.stdout!.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr!.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  const timer = setTimeout(() => child.kill('SIGKILL'), seconds * 1000);
  const [code] = (await once(child, 'close')) as [number | null];
  clearTimeout(timer);
  return { status: code ?? 124, stdout, stderr };
}

/** A process that has printed a first line on stdout. @throws if it ends before that */
async function ready(child: ChildProcess, what: string): Promise<string> {
  let text = '';
  child.stderr!.setEncoding('utf8').on('data', (t: string) => (text += t));
  const line = await new Promise<string>((resolve, reject) => {
    child.stdout!.setEncoding('utf8').on('data', (t: string) => {
      text += t;
      if (text.includes('\n')) resolve(text);
    });
    child.once('exit', (code) => reject(new Error(`${what} ended with ${code}: ${text}`)));
    child.once('error', reject);
  });
  return line;
}

/** Ends a process, if it has not ended; resolves when it has. */
export async function stopped(child: ChildProcess, signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exit = once(child, 'exit');
  child.kill(signal);
  await exit;
}

export class Host {
  readonly process: ChildProcess;
  readonly port: string;
  /** What it has printed. */
  log = '';

  constructor(process: ChildProcess, port: string) {
    this.process = process;
    this.port = port;
    for (const stream of [process.stdout!, process.stderr!]) {
      stream.setEncoding('utf8').on('data', (text: string) => (this.log += text));
    }
    process.once('exit', (code, signal) => (this.log += `ended with ${code ?? signal}\n`));
  }

  get pid(): number {
    return this.process.pid!;
  }

  /** Starts a program in this host. */
  spawn(program: string, args: readonly string[]): ChildProcess {
    return spawn('nsenter', ['-t', String(this.pid), '-n', program, ...args], { stdio: ['ignore', 'pipe', 'pipe'] });
  }

  /** Runs a program in this host to its end. */
  run(program: string, args: readonly string[], seconds = 120): Promise<Result> {
    return finished(this.spawn(program, args), seconds).then((result) => {
      const ended = this.process.exitCode !== null || this.process.signalCode !== null;
      return ended ? { ...result, stderr: `${result.stderr}${this.port}: ${this.log}` } : result;
    });
  }

  /** Starts a program that serves, and waits for the first line that it prints. */
  async serve(program: string, args: readonly string[]): Promise<ChildProcess> {
    const child = this.spawn(program, args);
    await ready(child, program);
    return child;
  }

  /** Whether an address answers: it is asked until it does. */
  async pings(address: string, ...options: string[]): Promise<boolean> {
    for (const end = performance.now() + PATIENCE_MS; performance.now() < end; ) {
      const { status } = await this.run('ping', ['-c', '1', '-i', '0.2', '-w', '10', ...options, address]);
      if (status === 0) return true;
    }
    return false;
  }

  /** Whether an address answers none of some pings. */
  async silent(address: string, ...options: string[]): Promise<boolean> {
    return (await this.run('ping', ['-c', '3', '-i', '0.2', '-W', '1', ...options, address])).status !== 0;
  }

  stop(): Promise<void> {
    return stopped(this.process, 'SIGTERM');
  }
}

export class Lab {
  readonly runDir: string;
  readonly #daemon: ChildProcess;
  readonly #hosts: Host[] = [];
  log = '';

  private constructor(runDir: string, daemon: ChildProcess) {
    this.runDir = runDir;
    this.#daemon = daemon;
  }

  static async start(...flags: string[]): Promise<Lab> {
    const runDir = mkdtempSync(join(tmpdir(), 'ptnet-net-'));
    const args = [MAIN, 'host', '--run-dir', runDir, '--log-level', 'warn', ...flags];
    const daemon = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'pipe'] });
    const lab = new Lab(runDir, daemon);
    for (const stream of [daemon.stdout!, daemon.stderr!]) {
      stream.setEncoding('utf8').on('data', (text: string) => (lab.log += text));
    }
    for (;;) {
      try {
        await listDaemon(runDir);
        return lab;
      } catch (e) {
        if (daemon.exitCode !== null) throw new Error(`the daemon ended: ${lab.log}`, { cause: e });
        await new Promise((resolve) => setTimeout(resolve, 20));
      }
    }
  }

  /** `ptnet up PORT …` in a namespace of its own. */
  async host(port: string, ...words: string[]): Promise<Host> {
    const args = ['-n', process.execPath, MAIN, 'up', port, '--run-dir', this.runDir, ...words];
    const child = spawn('unshare', args, { stdio: ['ignore', 'pipe', 'pipe'] });
    const host = new Host(child, port);
    this.#hosts.push(host);
    await ready(child, `ptnet up ${port}`);
    return host;
  }

  /** `ptnet …` on this daemon, in a host or outside. */
  ptnet(args: readonly string[], host?: Host): Promise<Result> {
    const all = [MAIN, ...args, '--run-dir', this.runDir];
    if (host !== undefined) return host.run(process.execPath, all);
    return finished(spawn(process.execPath, all, { stdio: ['ignore', 'pipe', 'pipe'] }), 120);
  }

  /** Ends the daemon alone. */
  stopDaemon(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    return stopped(this.#daemon, signal);
  }

  async close(): Promise<void> {
    for (const host of this.#hosts) await host.stop();
    await this.stopDaemon();
    rmSync(this.runDir, { recursive: true, force: true });
  }
}
