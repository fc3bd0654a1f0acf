// A guest that keeps the contract of e2e/README.md: the commands it provides, as calls.

import type { QemuGuest } from '../qemu.ts';

const BOOT_MS = 300_000;
const SHORT_MS = 60_000;

/** A command that runs in the background of a guest. */
export interface Background {
  /** Asks it to end (SIGINT), waits, and returns what it printed. */
  stop(): Promise<string>;
  output(): Promise<string>;
}

export class Guest {
  readonly name: string;
  readonly machine: QemuGuest;
  /** Interfaces of the driver, in the order of their PCI addresses. */
  interfaces: readonly string[] = [];
  #jobs = 0;

  constructor(name: string, machine: QemuGuest) {
    this.name = name;
    this.machine = machine;
  }

  /** Waits for a boot, or a reboot, and loads the driver. */
  async booted(): Promise<void> {
    await this.machine.waitReady(BOOT_MS);
    await this.load();
  }

  /** @param header whether the driver asks for a VirtIO network header */
  async load(header = true): Promise<void> {
    await this.run(`guest-load ${header ? 'on' : 'off'}`);
    const names = (await this.run('guest-interfaces')).split(/\s+/);
    this.interfaces = names.filter((name) => /^[a-z]+[0-9]+$/.test(name));
  }

  unload(): Promise<string> {
    return this.run('guest-unload');
  }

  /** The only, or the nth, interface. */
  interface(index = 0): string {
    const found = this.interfaces[index];
    if (found === undefined) throw new Error(`guest ${this.name} has ${this.interfaces.length} ptnet interfaces`);
    return found;
  }

  async up(address = '', index = 0): Promise<void> {
    await this.run(`guest-up ${this.interface(index)} ${address}`);
  }

  async down(index = 0): Promise<void> {
    await this.run(`guest-down ${this.interface(index)}`);
  }

  /** Replies to `count` pings. */
  async ping(address: string, count: number): Promise<number> {
    const { output } = await this.machine.run(`guest-ping ${address} ${count}`, SHORT_MS);
    return Number(/(\d+)(?: packets)? received/.exec(output)?.[1] ?? 0);
  }

  pktGenCommand(args: string): string {
    return `guest-pkt-gen -i netmap:${this.interface()} -w 0 ${args}`;
  }

  async background(command: string): Promise<Background> {
    this.#jobs += 1;
    const file = `/tmp/job-${this.#jobs}`;
    const pid = (await this.run(`${command} > ${file} 2>&1 < /dev/null & echo pid $!`)).match(/pid (\d+)/)?.[1];
    const output = (): Promise<string> => this.run(`cat ${file}`);
    const stop = async (): Promise<string> => {
      await this.machine.run(`kill -INT ${pid}`);
      await this.run(
        `n=0; while kill -0 ${pid} 2>/dev/null && [ $n -lt 50 ]; do sleep 0.1; n=$((n+1)); done; [ $n -lt 50 ]`,
      );
      return output();
    };
    return { stop, output };
  }

  /** Runs a line of shell; a return code other than 0 is an error. */
  run(command: string, timeoutMs = SHORT_MS): Promise<string> {
    return this.machine.mustRun(command, timeoutMs);
  }
}

/** What pkt-gen says at its end. */
export function pktGenCount(output: string): number {
  const found = /(?:Sent|Received) (\d+) packets/.exec(output)?.[1];
  if (found === undefined) throw new Error(`pkt-gen in the guest gave no result: ${output.slice(-600)}`);
  return Number(found);
}
