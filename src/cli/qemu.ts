/** QEMU: the arguments that give a machine its ports (docs/abi.md 4, 5), whether a QEMU can do it, and running one. */
import { execFile, spawn } from 'node:child_process';
import { constants } from 'node:os';
import { promisify } from 'node:util';
import type { VmStatus } from '../abi/index.ts';

/** The first QEMU that speaks vfio-user as a client. */
const OLDEST = [10, 1] as const;
/** Milliseconds without an answer after which QEMU gives a device up; its default of 5 s breaks the link for good. */
const MSG_TIMEOUT_MS = 60_000;

export interface MachineOptions {
  /** As QEMU writes it, e.g. 512M. */
  readonly memory: string;
  readonly machine: string;
  /** Add a virtual IOMMU, for drivers in the guest's user space. */
  readonly iommu?: boolean;
  /** The machine uses KVM. */
  readonly kvm?: boolean;
}

/** Guest memory that the daemon can map, an IOMMU if wanted, then one vfio-user device per socket: memdev first. */
export function qemuArguments(vm: VmStatus, options: MachineOptions): string[] {
  const { memory, machine, iommu = false, kvm = false } = options;
  // With KVM's whole interrupt controller in the kernel, the virtual IOMMU could not remap interrupts.
  const split = iommu && kvm ? ',kernel-irqchip=split' : '';
  const args = [
    '-object',
    `memory-backend-memfd,id=mem,size=${memory},share=on`,
    '-machine',
    `${machine},memory-backend=mem${split}`,
  ];
  // Before the devices that it translates for; without caching-mode QEMU cannot tell them what the guest maps.
  if (iommu) args.push('-device', 'intel-iommu,caching-mode=on');
  for (const path of vm.sockets) {
    const device = { driver: 'vfio-user-pci', socket: { type: 'unix', path }, 'x-msg-timeout': MSG_TIMEOUT_MS };
    args.push('-device', JSON.stringify(device));
  }
  return args;
}

/** A size as -m takes it for a memory backend: a bare number is MiB for the one, and bytes for the other. */
export function backendSize(size: string): string {
  return /\d$/.test(size) ? `${size}M` : size;
}

/** What a QEMU command line says about the machine: its memory (-m), type (-machine, -M) and whether it uses KVM. */
export function readQemuArguments(args: readonly string[]): { memory?: string; machine?: string; kvm: boolean } {
  const values = (...names: string[]): string[] =>
    args.flatMap((arg, i) => (names.includes(arg.replace(/^--/, '-')) ? [args[i + 1] ?? ''] : []));
  const memory = values('-m')
    .map((value) => /(?:^|^size=|,size=)(\d+(?:\.\d+)?[bkmgtpe]?)(?:,|$)/i.exec(value)?.[1])
    .findLast((size) => size !== undefined);
  const machine = values('-machine', '-M')
    .map((value) => /^(?:type=)?([a-z][a-z0-9.-]*)(?:,|$)/.exec(value)?.[1])
    .findLast((type) => type !== undefined);
  const kvm =
    args.some((arg) => /^--?enable-kvm$/.test(arg)) ||
    values('-accel', '-machine', '-M').some((value) => /(?:^|accel=|:)kvm\b/.test(value));
  return {
    ...(memory === undefined ? {} : { memory: backendSize(memory) }),
    ...(machine === undefined ? {} : { machine }),
    kvm,
  };
}

/** @throws Error if it is too old or has no vfio-user, naming what was found */
export async function checkQemu(program: string): Promise<void> {
  const ask = async (...args: string[]): Promise<string> => {
    try {
      const { stdout } = await promisify(execFile)(program, args, { maxBuffer: 2 ** 24 });
      return stdout;
    } catch (e) {
      const { code, message } = e as NodeJS.ErrnoException;
      const why = code === 'ENOENT' ? 'there is no such program' : message.split('\n')[0];
      throw new Error(`cannot start ${program}: ${why}`, { cause: e });
    }
  };
  const said = await ask('--version');
  const [, version = '', major = '0', minor = '0'] = /version ((\d+)\.(\d+)\S*)/.exec(said) ?? [];
  if (version === '') throw new Error(`${program} is not QEMU: --version says "${said.split('\n')[0]}"`);
  const isOld = Number(major) < OLDEST[0] || (Number(major) === OLDEST[0] && Number(minor) < OLDEST[1]);
  if (isOld)
    throw new Error(`${program} is QEMU ${version}: ptnet needs ${OLDEST.join('.')} or newer (device vfio-user-pci)`);
  if (!(await ask('-device', 'help')).includes('"vfio-user-pci"')) {
    throw new Error(`${program} is QEMU ${version}, but built without the device vfio-user-pci: ptnet needs it`);
  }
}

/** How QEMU ended: its exit status, or the signal that ended it. */
export interface QemuEnd {
  readonly status: number;
  readonly text: string;
}

/** Signals that are passed on to QEMU. */
const PASSED_ON = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT', 'SIGUSR1', 'SIGUSR2', 'SIGCONT'] as const;

/** Runs QEMU on this process's terminal until it ends. The status is as a shell would give it. */
export function runQemu(program: string, args: readonly string[]): Promise<QemuEnd> {
  return new Promise((resolve, reject) => {
    const child = spawn(program, args, { stdio: 'inherit' });
    const passOn = (signal: NodeJS.Signals): void => void child.kill(signal);
    for (const signal of PASSED_ON) process.on(signal, passOn);
    const done = (): void => {
      for (const signal of PASSED_ON) process.off(signal, passOn);
    };
    child.once('error', (e) => {
      done();
      reject(new Error(`cannot start ${program}: ${e.message}`));
    });
    child.once('exit', (code, signal) => {
      done();
      if (signal !== null) resolve({ status: 128 + constants.signals[signal], text: `QEMU was ended by ${signal}` });
      else resolve({ status: code ?? 1, text: `QEMU ended with status ${code}` });
    });
  });
}
