/** `ptnet vm`: the QEMU arguments that give a virtual machine its ports (shared/abi.md 4, docs/host.md). */
import type { Command } from 'commander';
import type { VmStatus } from '../../abi/index.ts';
import { defaultRunDir, listDaemon } from '../../api/index.ts';
import { type CommonFlags, command } from '../command.ts';
import { UsageError } from '../errors.ts';

interface VmFlags extends CommonFlags {
  readonly qemu?: string;
  readonly memory: string;
  readonly machine: string;
  readonly json?: boolean;
}

/** Milliseconds without an answer after which QEMU gives a device up; its default of 5 s breaks the link for good. */
const MSG_TIMEOUT_MS = 60_000;

export function vmCommand(): Command {
  return command('vm', 'print the QEMU arguments that give a virtual machine its ports', [
    ['ptnet vm fw', 'what to add to a QEMU 10.1 (or newer) command line'],
    ['eval "$(ptnet vm fw --qemu qemu-system-x86_64 --memory 2G) -nographic -drive file=fw.qcow2"', 'start it'],
    ['ptnet vm fw --json', 'as a JSON array, for programs'],
  ])
    .argument('<name>', 'the name given to ptnet host --vm, or in its configuration')
    .option('--qemu <path>', 'put this program in front')
    .option('--memory <size>', "the machine's memory, as QEMU writes it", '512M')
    .option('--machine <type>', 'the machine type', 'pc')
    .option('--json', 'print a JSON array of arguments')
    .action(async (name: string, flags: VmFlags) => {
      const { vms } = await listDaemon(flags.runDir ?? defaultRunDir());
      const vm = vms.find((v) => v.name === name);
      if (vm === undefined) {
        const known = vms.length === 0 ? 'it serves none' : `it serves ${vms.map((v) => v.name).join(', ')}`;
        throw new UsageError(`the daemon has no VM called "${name}": ${known} (see ptnet host --vm)`);
      }
      const args = [
        ...(flags.qemu === undefined ? [] : [flags.qemu]),
        ...qemuArguments(vm, flags.memory, flags.machine),
      ];
      process.stdout.write(flags.json ? `${JSON.stringify(args)}\n` : `${args.map(shellQuote).join(' ')}\n`);
    });
}

/** Guest memory that the daemon can map, then one vfio-user device per socket: memdev first. */
export function qemuArguments(vm: VmStatus, memory: string, machine: string): string[] {
  const args = [
    '-object',
    `memory-backend-memfd,id=mem,size=${memory},share=on`,
    '-machine',
    `${machine},memory-backend=mem`,
  ];
  for (const path of vm.sockets) {
    const device = { driver: 'vfio-user-pci', socket: { type: 'unix', path }, 'x-msg-timeout': MSG_TIMEOUT_MS };
    args.push('-device', JSON.stringify(device));
  }
  return args;
}

/** A word as a POSIX shell reads it back. */
export function shellQuote(word: string): string {
  return /^[A-Za-z0-9_@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", String.raw`'\''`)}'`;
}
