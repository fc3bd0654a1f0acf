/**
 * Network stacks with an address, in machines (`ptnet up` there) and in namespaces of the host: pings and TCP between
 * them, whoever they are.
 */
import assert from 'node:assert/strict';
import type { ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { QemuGuest } from './qemu.ts';

const peer = fileURLToPath(new URL('tcp-peer.js', import.meta.url));
/** Only a hang takes so long. */
const TRANSFER_MS = 180_000;
const TCP_PORT = 5001;

const md5 = (output: string): string | undefined => /\b[0-9a-f]{32}\b/.exec(output)?.[0];

/** One end of pings and connections. */
export interface Stack {
  readonly address: string;
  /** How many of `count` pings with `bytes` of data are answered. */
  ping(address: string, count: number, bytes: number): Promise<number>;
  /** Accepts one connection. @returns, once it listens, what waits for the end and gives the MD5 of what came */
  receive(): Promise<() => Promise<string>>;
  /** Sends random bytes. @returns their MD5 */
  send(address: string, bytes: number): Promise<string>;
}

/** Ping from one to the other, with short and with fragmented packets, then TCP in both directions: what is sent arrives. */
export async function talk(a: Stack, b: Stack, bytes: number): Promise<void> {
  for (const size of [56, 5000]) {
    const answers = await a.ping(b.address, 4, size);
    assert.ok(answers >= 3, `${answers} of 4 pings of ${size} bytes from ${a.address} to ${b.address} were answered`);
  }
  for (const [from, to] of [
    [a, b],
    [b, a],
  ] as const) {
    const received = await to.receive();
    const sent = await from.send(to.address, bytes);
    assert.equal(await received(), sent, `${bytes} bytes from ${from.address} to ${to.address}`);
  }
}

async function until<T>(what: string, holds: () => Promise<T | undefined>): Promise<T> {
  const end = Date.now() + TRANSFER_MS;
  for (;;) {
    const value = await holds();
    if (value !== undefined) return value;
    assert.ok(Date.now() < end, `in vain: ${what}`);
    await sleep(200);
  }
}

/** An interface that `ptnet up` makes in a machine. */
export class MachineStack implements Stack {
  readonly address: string;
  /** What `ptnet up` said: the interface's name, the header. */
  readonly said: string;
  readonly #guest: QemuGuest;
  readonly #pid: string;

  private constructor(guest: QemuGuest, address: string, said: string, pid: string) {
    this.#guest = guest;
    this.address = address;
    this.said = said;
    this.#pid = pid;
  }

  /** @param words of ptnet up, besides the address */
  static async up(guest: QemuGuest, port: string, address: string, ...words: string[]): Promise<MachineStack> {
    const log = `/tmp/up-${port}`;
    const command = `ptnet up ${port} inet ${address}/24 ${words.join(' ')}`;
    const pid = (await guest.mustRun(`modprobe tun && : > ${log} && { ${command} > ${log} 2>&1 & echo $!; }`)).trim();
    const said = await until(`${command}`, async () => {
      const output = await guest.mustRun(`cat ${log}`);
      if ((await guest.run(`kill -0 ${pid}`)).rc !== 0) assert.fail(`${command}: ${output}`);
      return output.includes('queue') ? output : undefined;
    });
    return new MachineStack(guest, address, said, pid);
  }

  async ping(address: string, count: number, bytes: number): Promise<number> {
    const { output } = await this.#guest.run(`ping -c ${count} -i 0.2 -s ${bytes} -w 20 ${address}`);
    return Number(/(\d+) packets received/.exec(output)?.[1] ?? 0);
  }

  async receive(): Promise<() => Promise<string>> {
    const file = '/tmp/tcp-received';
    await this.#guest.mustRun(`tcp-receive ${TCP_PORT} > ${file} 2>&1 &`);
    await until('it listens', async () => {
      const { rc } = await this.#guest.run(`netstat -ltn | grep -q :${TCP_PORT}`);
      return rc === 0 ? true : undefined;
    });
    return () => until('the connection ends', async () => md5(await this.#guest.mustRun(`cat ${file}`)));
  }

  async send(address: string, bytes: number): Promise<string> {
    const output = await this.#guest.mustRun(`tcp-send ${address} ${TCP_PORT} ${bytes}`, TRANSFER_MS);
    return md5(output) ?? assert.fail(output);
  }

  /** Ends `ptnet up`, and with it the interface. */
  async down(): Promise<void> {
    await this.#guest.run(`kill ${this.#pid}`);
    await until('ptnet up ends', async () =>
      (await this.#guest.run(`kill -0 ${this.#pid}`)).rc === 0 ? undefined : true,
    );
  }
}

/** The stack of a network namespace of the host. */
export class HostStack implements Stack {
  readonly address: string;
  readonly #spawn: (program: string, args: readonly string[]) => ChildProcess;

  /** @param spawn starts a program in the namespace, its outputs piped */
  constructor(address: string, spawn: (program: string, args: readonly string[]) => ChildProcess) {
    this.address = address;
    this.#spawn = spawn;
  }

  async ping(address: string, count: number, bytes: number): Promise<number> {
    const child = this.#spawn('ping', ['-c', `${count}`, '-i', '0.2', '-s', `${bytes}`, '-w', '20', address]);
    return Number(/(\d+) received/.exec(await outputOf(child))?.[1] ?? 0);
  }

  async receive(): Promise<() => Promise<string>> {
    const child = this.#spawn(process.execPath, [peer, 'receive', `${TCP_PORT}`]);
    const output = outputOf(child);
    await once(child.stdout!, 'data');
    return async () => md5(await output) ?? assert.fail(await output);
  }

  async send(address: string, bytes: number): Promise<string> {
    const output = await outputOf(this.#spawn(process.execPath, [peer, 'send', address, `${TCP_PORT}`, `${bytes}`]));
    return md5(output) ?? assert.fail(output);
  }
}

/** All that a program prints until it ends; it is killed when it takes too long. */
async function outputOf(child: ChildProcess): Promise<string> {
  let text = '';
  for (const stream of [child.stdout!, child.stderr!])
    stream.setEncoding('utf8').on('data', (t: string) => (text += t));
  const timer = setTimeout(() => child.kill('SIGKILL'), TRANSFER_MS);
  await once(child, 'close');
  clearTimeout(timer);
  return text;
}
