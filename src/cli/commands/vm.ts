/** `ptnet vm`: the QEMU arguments that give a virtual machine its ports, and starting QEMU with them (docs/host.md). */
import type { Command } from 'commander';
import type { DaemonStatus, VmStatus } from '../../abi/index.ts';
import { defaultRunDir, listDaemon } from '../../api/index.ts';
import { type CommonFlags, command } from '../command.ts';
import { UsageError } from '../errors.ts';
import { backendSize, checkQemu, type MachineOptions, qemuArguments, readQemuArguments, runQemu } from '../qemu.ts';

interface VmFlags extends CommonFlags {
  readonly qemu?: string;
  readonly memory?: string;
  readonly machine?: string;
  readonly iommu?: boolean;
  readonly json?: boolean;
}

export function vmCommand(): Command {
  return command('vm', 'start QEMU with the ports of a virtual machine, or print the arguments for it', [
    ['ptnet vm fw -- qemu-system-x86_64 -m 2G -nographic -drive file=fw.qcow2', 'start a machine (QEMU 10.1 or newer)'],
    ['ptnet vm fw', 'only print what is to be added to a QEMU command line'],
    ['ptnet vm fw --iommu -- qemu-system-x86_64 -m 1G …', 'for the TypeScript driver in the guest'],
    ['ptnet vm fw --json', 'as a JSON array, for programs'],
  ])
    .argument('<name>', 'the name given to ptnet host --vm, or in its configuration')
    .argument('[qemu...]', 'after "--": a QEMU command line to start')
    .option('--qemu <path>', 'when printing: put this program in front')
    .option('--memory <size>', "the machine's memory, as for -m of QEMU (default: that of -m, else 512M)")
    .option('--machine <type>', 'the machine type (default: that of -machine; q35 with --iommu, else pc)')
    .option('--iommu', 'give the machine a virtual IOMMU, for drivers in the user space of the guest')
    .option('--json', 'print a JSON array of arguments')
    .action(vm);
}

async function vm(name: string, [program, ...given]: readonly string[], flags: VmFlags): Promise<void> {
  const status = await listDaemon(flags.runDir ?? defaultRunDir());
  const found = findVm(status, name);
  const args = [...qemuArguments(found, machineOptions(flags, given)), ...given];
  if (program === undefined) {
    const line = [...(flags.qemu === undefined ? [] : [flags.qemu]), ...args];
    process.stdout.write(flags.json ? `${JSON.stringify(line)}\n` : `${line.map(shellQuote).join(' ')}\n`);
    return;
  }
  const busy = status.domains.flatMap((d) => d.ports).find((p) => p.attached && 'vm' in p.owner && p.owner.vm === name);
  if (busy !== undefined) throw new Error(`VM ${name} runs already: somebody is connected to its port ${busy.name}`);
  await checkQemu(program);
  const end = await runQemu(program, args);
  if (end.status !== 0) process.stderr.write(`ptnet: VM ${name}: ${end.text}\n`);
  process.exitCode = end.status;
}

function findVm(status: DaemonStatus, name: string): VmStatus {
  const { vms } = status;
  const found = vms.find((v) => v.name === name);
  if (found !== undefined) return found;
  const known = vms.length === 0 ? 'it serves none' : `it serves ${vms.map((v) => v.name).join(', ')}`;
  throw new UsageError(`the daemon has no VM called "${name}": ${known} (see ptnet host --vm)`);
}

function machineOptions(flags: VmFlags, given: readonly string[]): MachineOptions {
  const { memory, machine, kvm } = readQemuArguments(given);
  const iommu = flags.iommu ?? false;
  if (flags.memory !== undefined && !/^\d+(\.\d+)?[bkmgtpe]?$/i.test(flags.memory))
    throw new UsageError(`--memory ${flags.memory}: must be a size as QEMU writes it, e.g. 512M, 2G`);
  const chosen = flags.machine ?? machine ?? (iommu ? 'q35' : 'pc');
  if (iommu && !/^(?:pc-)?q35/.test(chosen)) {
    throw new UsageError(`--iommu: machine type ${chosen} has no virtual IOMMU, use q35`);
  }
  return {
    memory: flags.memory === undefined ? (memory ?? '512M') : backendSize(flags.memory),
    machine: chosen,
    iommu,
    kvm,
  };
}

/** A word as a POSIX shell reads it back. */
export function shellQuote(word: string): string {
  return /^[A-Za-z0-9_@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", String.raw`'\''`)}'`;
}
