/**
 * Two network namespaces with a veth pair between them: `here`, where the daemon runs and `veth0` is, and `there`, where
 * `veth1` is and only the kernel and our peers are. Everything goes with `close`; the machine's own network is not touched.
 */
import { type ChildProcess, execFileSync, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { PortStatus } from '../../src/abi/index.ts';
import { controlRequest } from '../../src/api/control.ts';
import { listDaemon } from '../../src/api/index.ts';
import { closeFd } from '../../src/os/index.ts';

const root = fileURLToPath(new URL('../../..', import.meta.url));
const main = join(root, 'dist/src/cli/main.js');
const peerProgram = fileURLToPath(new URL('nic-peer.js', import.meta.url));

/** Why tests of interfaces cannot run here, or false. @param tools programs that a test needs besides */
export function nicSkip(...tools: string[]): string | false {
  if (process.getuid!() !== 0) return 'needs root: network namespaces, AF_XDP, BPF';
  const missing = ['ip', 'ethtool', ...tools].filter((tool) => spawnSync('which', [tool]).status !== 0);
  if (missing.length > 0) return `needs ${missing.join(', ')} (Debian: iproute2, ethtool, iputils-ping, iperf3)`;
  const unshare = spawnSync('unshare', ['-n', 'ip', 'link', 'add', 'type', 'veth']);
  return unshare.status === 0 ? false : 'needs network namespaces and veth (Linux CONFIG_VETH)';
}

/** Patience for what takes a moment: only a hang gets there. */
const PATIENCE_MS = 60_000;
const clock = new Int32Array(new SharedArrayBuffer(4));

/** What a program printed. */
export interface Output {
  readonly status: number;
  readonly text: string;
}

export class Namespace {
  readonly name: string;

  constructor(name: string) {
    this.name = name;
    execFileSync('ip', ['netns', 'add', name]);
    this.ip('link', 'set', 'lo', 'up');
  }

  ip(...args: string[]): string {
    return execFileSync('ip', ['-n', this.name, ...args], { encoding: 'utf8' });
  }

  ethtool(...args: string[]): string {
    return execFileSync('ip', ['netns', 'exec', this.name, 'ethtool', ...args], { encoding: 'utf8' });
  }

  spawn(program: string, ...args: string[]): ChildProcess {
    return spawn('ip', ['netns', 'exec', this.name, program, ...args], { stdio: 'pipe' });
  }

  /** Starts one of ptnet's commands. */
  ptnet(...args: string[]): ChildProcess {
    return this.spawn(process.execPath, main, ...args);
  }

  /** Runs a program to its end, `seconds` at most. */
  async run(program: string, args: readonly string[], seconds = 120): Promise<Output> {
    const child = this.spawn(program, ...args);
    let text = '';
    for (const stream of [child.stdout!, child.stderr!])
      stream.setEncoding('utf8').on('data', (t: string) => (text += t));
    const timer = setTimeout(() => child.kill('SIGKILL'), seconds * 1000);
    const [status] = (await once(child, 'close')) as [number | null];
    clearTimeout(timer);
    return { status: status ?? 124, text };
  }

  /** Starts one of nic-peer's commands. */
  peer(...args: string[]): Peer {
    return new Peer(this.spawn(process.execPath, peerProgram, ...args));
  }

  /** Waits until links are up for all that they concern: their queues, and the bridge that they are ports of. */
  linksUp(...ifaces: string[]): void {
    interface Link {
      readonly operstate: string;
      readonly linkinfo?: { readonly info_slave_data?: { readonly state?: string } };
    }
    for (const iface of ifaces) {
      for (const end = performance.now() + PATIENCE_MS; ; Atomics.wait(clock, 0, 0, 10)) {
        const [link] = JSON.parse(this.ip('-j', '-d', 'link', 'show', iface)) as [Link];
        const port = link.linkinfo?.info_slave_data?.state ?? 'forwarding';
        if (link.operstate === 'UP' && port === 'forwarding') break;
        if (performance.now() > end) throw new Error(`${iface} never went up: ${JSON.stringify(link)}`);
      }
    }
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
  async silent(address: string): Promise<boolean> {
    const { status } = await this.run('ping', ['-c', '3', '-i', '0.2', '-W', '1', address]);
    return status !== 0;
  }

  close(): void {
    spawnSync('ip', ['netns', 'del', this.name]);
  }
}

/** A nic-peer process. */
export class Peer {
  /** Frames that it says it has. */
  frames = 0;
  readonly #child: ChildProcess;
  #text = '';
  readonly #closed: Promise<unknown>;
  #changed = (): void => {};

  constructor(child: ChildProcess) {
    this.#child = child;
    child.stdin!.on('error', () => {}); // it has ended
    for (const stream of [child.stdout!, child.stderr!]) {
      stream.setEncoding('utf8').on('data', (t: string) => {
        this.#text += t;
        this.frames = Math.max(this.frames, Number(/(\d+)\n[^\n]*$/.exec(this.#text)?.[1] ?? 0));
        this.#changed();
      });
    }
    this.#closed = once(child, 'close').then(() => this.#changed());
  }

  async ready(): Promise<this> {
    while (!this.#text.includes('ready')) {
      if (this.#child.exitCode !== null) throw new Error(`the peer ended: ${this.#text}`);
      await this.change();
    }
    return this;
  }

  /** Tells a sender how many frames have arrived. */
  arrived(frames: number): void {
    if (this.#child.exitCode === null) this.#child.stdin!.write(`${frames}\n`);
  }

  /** Resolves when it says something, when it ends, or after a while. */
  change(): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, 1000);
      this.#changed = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** Ends it, whatever it has counted. */
  async stop(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#closed;
  }

  /** Ends it if `signal` is given, waits for its end. */
  async result(signal?: NodeJS.Signals): Promise<Record<string, number>> {
    if (signal !== undefined) this.#child.kill(signal);
    await this.#closed;
    const line = this.#text.split('\n').find((l) => l.startsWith('{'));
    if (line === undefined) throw new Error(`the peer counted nothing: ${this.#text}`);
    return JSON.parse(line) as Record<string, number>;
  }
}

let labs = 0;

export class NicLab {
  readonly here: Namespace;
  readonly there: Namespace;
  readonly runDir: string;
  readonly #dir: string;
  daemon: ChildProcess | undefined;
  log = '';
  /** How the daemon ended without having been asked to. */
  died: string | undefined;

  /** @param mtu of both ends */
  constructor(mtu = 1500) {
    this.#dir = mkdtempSync(join(tmpdir(), 'ptnet-nic-'));
    this.runDir = join(this.#dir, 'run');
    const id = `ptnet-${process.pid}-${labs++}`;
    this.here = new Namespace(`${id}-a`);
    this.there = new Namespace(`${id}-b`);
    this.wire(mtu);
  }

  /** Makes the veth pair. What a stack leaves to a card's offloads would not be done on a veth, so that is off there. */
  wire(mtu = 1500): void {
    const first = ['link', 'add', 'veth0', 'netns', this.here.name, 'type', 'veth'];
    execFileSync('ip', [...first, 'peer', 'name', 'veth1', 'netns', this.there.name]);
    for (const [ns, iface] of [
      [this.here, 'veth0'],
      [this.there, 'veth1'],
    ] as const) {
      // No frames of IPv6's own among those that are counted.
      spawnSync('ip', ['netns', 'exec', ns.name, 'sysctl', '-qw', `net.ipv6.conf.${iface}.disable_ipv6=1`]);
      ns.ip('link', 'set', iface, 'mtu', String(mtu), 'up');
    }
    this.there.ethtool('-K', 'veth1', 'tx', 'off', 'txvlan', 'off', 'tso', 'off', 'gso', 'off');
    this.here.linksUp('veth0');
    this.there.linksUp('veth1');
  }

  /** Gives both ends an address: 10.77.0.1 here, 10.77.0.2 there. */
  addresses(): void {
    this.here.ip('addr', 'add', '10.77.0.1/24', 'dev', 'veth0');
    this.there.ip('addr', 'add', '10.77.0.2/24', 'dev', 'veth1');
  }

  /** Puts veth0 into a bridge br0. */
  bridge(): void {
    this.here.ip('link', 'add', 'br0', 'type', 'bridge');
    spawnSync('ip', ['netns', 'exec', this.here.name, 'sysctl', '-qw', 'net.ipv6.conf.br0.disable_ipv6=1']);
    this.here.ip('link', 'set', 'veth0', 'master', 'br0');
    this.here.ip('link', 'set', 'br0', 'up');
    this.here.linksUp('veth0', 'br0');
  }

  /** … and at the same bridge veth2, whose frames leave through veth0 as the host's own do, and the other way round. */
  behindBridge(): void {
    this.bridge();
    this.here.ip('link', 'add', 'veth2', 'type', 'veth', 'peer', 'name', 'veth3');
    this.here.ip('link', 'set', 'veth3', 'master', 'br0');
    for (const end of ['veth2', 'veth3']) this.here.ip('link', 'set', end, 'addrgenmode', 'none', 'up');
    this.here.linksUp('veth2', 'veth3');
  }

  /** Frames that veth1's driver could not deliver to veth0. */
  lost(): number {
    const [link] = JSON.parse(this.there.ip('-j', '-s', 'link', 'show', 'veth1')) as [
      { stats64: { tx: { dropped: number } } },
    ];
    return link.stats64.tx.dropped;
  }

  /** Starts a daemon in `here`, or elsewhere. @param config its configuration besides the run directory */
  async start(config: object = {}, where = this.here): Promise<void> {
    const file = join(this.#dir, 'ptnet.yaml');
    writeFileSync(file, JSON.stringify({ runDir: this.runDir, ...config }));
    this.log = '';
    const daemon = where.ptnet('host', '--config', file, '--log-level', 'info');
    this.daemon = daemon;
    for (const stream of [daemon.stdout!, daemon.stderr!]) {
      stream.setEncoding('utf8').on('data', (t: string) => (this.log += t));
    }
    daemon.on('exit', (status, signal) => {
      if (this.daemon !== daemon) return;
      const last = this.log.split('\n').slice(-20).join('\n');
      this.died = `the daemon ended (status ${status}, signal ${signal}); it said last:\n${last}`;
      process.stderr.write(`${this.died}\n`);
    });
    while (!this.log.includes('runs in')) {
      if (this.died !== undefined) throw new Error(this.died);
      await sleep(10);
    }
  }

  /** Waits for a text in the daemon's log. */
  async logs(text: string): Promise<void> {
    for (const end = performance.now() + PATIENCE_MS; !this.log.includes(text); await sleep(10)) {
      if (performance.now() > end) throw new Error(`the daemon never said "${text}": ${this.log}`);
    }
  }

  /** @param memId the @ID of the region, with -a and -h */
  async valeCtl(letter: 'a' | 'd' | 'h', name: string, memId?: string): Promise<void> {
    const command = { letter, name, ...(memId === undefined ? {} : { memId }) };
    const { connection } = await controlRequest(this.runDir, { op: 'vale-ctl', command });
    closeFd(connection);
  }

  async ports(): Promise<readonly PortStatus[]> {
    const { domains } = await listDaemon(this.runDir);
    return domains.flatMap((d) => d.ports);
  }

  async port(name: string): Promise<PortStatus> {
    const found = (await this.ports()).find((p) => p.name === name);
    if (found === undefined) throw new Error(`the daemon has no port ${name}`);
    return found;
  }

  /** Waits until nothing of a daemon's is at veth0: not AF_XDP's program, not a packet socket that wants all frames. */
  async untouched(): Promise<void> {
    const end = performance.now() + PATIENCE_MS;
    while (/PROMISC|xdp/.test(this.here.ip('link', 'show', 'veth0'))) {
      if (performance.now() > end)
        throw new Error(`veth0 was not given back: ${this.here.ip('link', 'show', 'veth0')}`);
      await sleep(10);
    }
  }

  /** Until nobody has a port and the interfaces are the host's again: a region is the last that goes. */
  async givenBack(): Promise<void> {
    while ((await listDaemon(this.runDir)).regions.length > 0) await sleep(10);
  }

  /** Ends the daemon by a signal. */
  async end(signal: NodeJS.Signals = 'SIGTERM'): Promise<void> {
    const { daemon } = this;
    this.daemon = undefined;
    if (daemon === undefined || daemon.exitCode !== null || daemon.signalCode !== null) return;
    const ended = once(daemon, 'exit');
    daemon.kill(signal);
    await ended;
  }

  /** @throws Error: the daemon had ended before, by itself */
  async close(): Promise<void> {
    await this.end();
    this.here.close();
    this.there.close();
    rmSync(this.#dir, { recursive: true, force: true });
    if (this.died !== undefined) throw new Error(this.died);
  }
}
