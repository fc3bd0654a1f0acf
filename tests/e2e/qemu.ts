// Drives a QEMU and the guest in it: the serial console as tools/README.md describes it, QMP, and the PCI devices as
// the guest's sysfs shows them. Everything that fails says so together with the last lines of the serial log.

import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { appendFileSync } from 'node:fs';
import { join } from 'node:path';
import type { Duplex, Readable, Writable } from 'node:stream';
import { promisify } from 'node:util';

// An emulated machine on a busy one: only a hang takes so long.
const BOOT_TIMEOUT_MS = 300_000;
const COMMAND_TIMEOUT_MS = 120_000;
const QMP_TIMEOUT_MS = 60_000;
/** How long an interrupted command may take to end before the console counts as lost. */
const INTERRUPT_TIMEOUT_MS = 10_000;
const LOG_CHARS = 256 * 1024;
const LOG_LINES_IN_ERRORS = 25;
const CTRL_C = '\x03';

/**
 * For a quick and undisturbed boot: no kernel message below “emergency” on the console (others are in the guest's dmesg; append
 * loglevel=7 to see them), a panic ends QEMU, timers are not distrusted when the host is busy, and what takes 0.3 s
 * of 2 s under TCG is left out (measured 2026-11: self-tests of the crypto code, AppArmor, audit).
 */
const KERNEL_ARGUMENTS =
  'console=ttyS0 loglevel=1 panic=-1 no_timer_check tsc=reliable mitigations=off cryptomgr.notests apparmor=0 audit=0';

export interface QemuOptions {
  readonly qemu: string;
  /** Either a kernel and its initrd, or a disk image to boot from; what the guest writes to the disk is forgotten. */
  readonly kernel?: string;
  readonly initrd?: string;
  readonly disk?: string;
  readonly machine?: 'pc' | 'q35';
  readonly memoryMiB?: number;
  readonly cpus?: number;
  /** The values of `-device`, in this order. */
  readonly devices?: readonly string[];
  /** Memory, machine and devices as `ptnet vm --json` gives them, instead of the four above. */
  readonly ptnetArgs?: readonly string[];
  readonly extraArgs?: readonly string[];
  /** Added to the kernel's command line. */
  readonly append?: string;
  /** Everything from the serial port and from QEMU itself, and the commands, are also appended to this file. */
  readonly logFile?: string;
}

export interface CommandResult {
  readonly rc: number;
  readonly output: string;
}

export interface QemuExit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
}

export interface QmpEvent {
  readonly event: string;
  readonly data: unknown;
}

/** Something did not happen as expected; the message ends with what the serial port said last. */
export class QemuError extends Error {}

interface Waiter {
  readonly pattern: RegExp;
  readonly resolve: (match: RegExpExecArray) => void;
}

interface QmpRequest {
  readonly command: string;
  readonly resolve: (value: unknown) => void;
  readonly reject: (error: Error) => void;
}

/** QEMUs that must not outlive the test process. */
const running = new Set<ChildProcess>();
process.on('exit', () => {
  for (const child of running) child.kill('SIGKILL');
});

export class QemuGuest {
  readonly exited: Promise<QemuExit>;

  readonly #child: ChildProcess;
  readonly #console: Writable;
  readonly #qmpSocket: Duplex;
  readonly #logFile: string | undefined;
  #exit: QemuExit | null = null;
  #log = '';
  /** What came from the serial port and was not taken by anyone yet. */
  #serial = '';
  #waiter: Waiter | null = null;
  /** The end of the last command given to `run`: commands go one after another. */
  #lastCommand: Promise<unknown> = Promise.resolve();
  /** The command that did not end even when interrupted: what follows on the console cannot be told apart any more. */
  #stuckCommand: string | null = null;
  #qmpText = '';
  #nextQmpId = 1;
  readonly #qmpRequests = new Map<number, QmpRequest>();
  readonly #qmpListeners = new Set<(event: QmpEvent) => void>();

  private constructor(options: QemuOptions) {
    this.#logFile = options.logFile;
    // File descriptor 3 is one end of a UNIX socket pair: QMP without a path in the file system that could be left over.
    const child = spawn(options.qemu, qemuArguments(options), { stdio: ['pipe', 'pipe', 'pipe', 'pipe'] });
    const [stdin, stdout, stderr, qmp] = child.stdio as unknown as [Writable, Readable, Readable, Duplex];
    this.#child = child;
    this.#console = stdin;
    this.#qmpSocket = qmp;
    running.add(child);

    stdout.setEncoding('latin1').on('data', (text: string) => this.#onSerial(text));
    stderr.setEncoding('utf8').on('data', (text: string) => this.#record(text));
    qmp.setEncoding('utf8').on('data', (text: string) => this.#onQmp(text));
    // QEMU may end at any time; `exited` tells.
    for (const stream of [stdin, qmp]) stream.on('error', () => {});

    this.exited = new Promise((resolve) => {
      child.once('error', (error) => {
        this.#record(`${error.message}\n`);
        this.#onExit({ code: null, signal: null }, resolve);
      });
      child.once('close', (code, signal) => this.#onExit({ code, signal }, resolve));
    });
  }

  /** Starts QEMU and connects QMP. The guest is not up yet: see `waitReady`. */
  static async start(options: QemuOptions): Promise<QemuGuest> {
    const guest = new QemuGuest(options);
    await guest.qmp('qmp_capabilities');
    return guest;
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  /** The last that came from the serial port and from QEMU, and the commands (“$ …”). */
  get log(): string {
    return this.#log;
  }

  /** Waits until the guest takes commands, after start, `reset` or a reboot. */
  async waitReady(timeoutMs = BOOT_TIMEOUT_MS): Promise<void> {
    await this.#waitFor(/@@ready\r?\n/, timeoutMs, 'the guest is ready');
    this.#stuckCommand = null;
  }

  /**
   * Runs one line of shell in the guest. If it takes too long it is interrupted and the promise fails; the guest can be used
   * further, if the command could be interrupted.
   */
  run(command: string, timeoutMs = COMMAND_TIMEOUT_MS): Promise<CommandResult> {
    const result = this.#lastCommand.then(() => this.#runNow(command, timeoutMs));
    this.#lastCommand = result.catch(() => {});
    return result;
  }

  /** Like `run`, but a return code other than 0 is an error; returns the output. */
  async mustRun(command: string, timeoutMs?: number): Promise<string> {
    const { rc, output } = await this.run(command, timeoutMs);
    if (rc !== 0) throw this.#error(`“${command}” returned ${rc}: ${output.trim()}`);
    return output;
  }

  /** Sends a line and expects no answer: for `reboot -f` and `poweroff -f`. */
  send(line: string): void {
    this.#record(`$ ${line}\n`);
    this.#console.write(`${line}\n`);
  }

  /** One QMP command; returns the value of “return”. */
  async qmp(command: string, args: Record<string, unknown> = {}, timeoutMs = QMP_TIMEOUT_MS): Promise<unknown> {
    const id = this.#nextQmpId;
    this.#nextQmpId += 1;
    const answer = new Promise<unknown>((resolve, reject) => {
      this.#qmpRequests.set(id, { command, resolve, reject });
    });
    this.#qmpSocket.write(`${JSON.stringify({ execute: command, arguments: args, id })}\n`);
    try {
      return await this.#within(answer, timeoutMs, `QMP ${command} is answered`);
    } finally {
      this.#qmpRequests.delete(id);
    }
  }

  /** The next QMP event with this name. Call it before the action that causes the event. */
  async waitQmpEvent(name: string, timeoutMs = QMP_TIMEOUT_MS): Promise<QmpEvent> {
    let listener: ((event: QmpEvent) => void) | undefined;
    const arrived = new Promise<QmpEvent>((resolve) => {
      listener = (event) => event.event === name && resolve(event);
      this.#qmpListeners.add(listener);
    });
    try {
      return await this.#within(arrived, timeoutMs, `the QMP event ${name} arrives`);
    } finally {
      if (listener) this.#qmpListeners.delete(listener);
    }
  }

  /** Resets the machine, as its reset button would, and waits until the reset is done. `waitReady` comes next. */
  async reset(): Promise<void> {
    const done = this.waitQmpEvent('RESET');
    await Promise.all([done, this.qmp('system_reset')]);
    this.#serial = '';
    this.#stuckCommand = null;
  }

  kill(signal: NodeJS.Signals = 'SIGKILL'): void {
    this.#child.kill(signal);
  }

  /** Kills QEMU if it still runs, and waits for its end. */
  async close(): Promise<QemuExit> {
    if (!this.#exit) this.kill();
    return this.exited;
  }

  async #runNow(command: string, timeoutMs: number): Promise<CommandResult> {
    if (command.includes('\n')) throw new QemuError(`a command is one line: ${JSON.stringify(command)}`);
    if (this.#stuckCommand !== null) throw this.#error(`the guest still runs “${this.#stuckCommand}”`);
    // The mark stands at the start of a line, or right after an output that did not end its last line.
    const end = /@@rc=(\d+)\n/;
    this.send(command);
    try {
      return toResult(await this.#waitFor(end, timeoutMs, `“${command}” ends`));
    } catch (error) {
      if (!this.#exit) await this.#interrupt(command, end);
      throw error;
    }
  }

  async #interrupt(command: string, end: RegExp): Promise<void> {
    this.#stuckCommand = command;
    this.#console.write(CTRL_C);
    try {
      await this.#waitFor(end, INTERRUPT_TIMEOUT_MS, `“${command}” is interrupted`);
      this.#stuckCommand = null;
    } catch {
      // Stays stuck until the next `waitReady`.
    }
  }

  /** Waits for `pattern` in what the serial port says, and takes everything up to its end. One caller at a time. */
  async #waitFor(pattern: RegExp, timeoutMs: number, what: string): Promise<RegExpExecArray> {
    if (this.#waiter)
      throw new QemuError(`somebody else waits for the serial port already (while waiting that ${what})`);
    const found = new Promise<RegExpExecArray>((resolve) => {
      this.#waiter = { pattern, resolve };
    });
    this.#tryWaiter();
    try {
      return await this.#within(found, timeoutMs, what);
    } finally {
      this.#waiter = null;
    }
  }

  #tryWaiter(): void {
    if (!this.#waiter) return;
    const match = this.#waiter.pattern.exec(this.#serial);
    if (!match) return;
    this.#serial = this.#serial.slice(match.index + match[0].length);
    const { resolve } = this.#waiter;
    this.#waiter = null;
    resolve(match);
  }

  /** `promise`, or an error after `timeoutMs` or when QEMU ends. */
  async #within<T>(promise: Promise<T>, timeoutMs: number, what: string): Promise<T> {
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<never>((_resolve, reject) => {
      timer = setTimeout(() => reject(this.#error(`waited ${timeoutMs} ms in vain that ${what}`)), timeoutMs);
    });
    const ended = this.exited.then((exit) => {
      throw this.#error(`${describeExit(exit)} while waiting that ${what}`);
    });
    try {
      return await Promise.race([promise, late, ended]);
    } finally {
      clearTimeout(timer);
    }
  }

  #onSerial(text: string): void {
    this.#record(text);
    this.#serial += text;
    this.#tryWaiter();
  }

  #onQmp(text: string): void {
    const lines = (this.#qmpText + text).split('\n');
    this.#qmpText = lines.pop() ?? '';
    for (const line of lines) this.#onQmpMessage(JSON.parse(line) as Record<string, unknown>);
  }

  /** Greetings have neither field; events have “event”; answers have the “id” of their request. */
  #onQmpMessage(message: Record<string, unknown>): void {
    const { event, id, error } = message;
    if (typeof event === 'string') {
      for (const listener of this.#qmpListeners) listener({ event, data: message['data'] });
    }
    const request = typeof id === 'number' ? this.#qmpRequests.get(id) : undefined;
    if (!request) return;
    if (error === undefined) request.resolve(message['return']);
    else request.reject(this.#error(`QMP ${request.command}: ${JSON.stringify(error)}`));
  }

  #onExit(exit: QemuExit, resolve: (exit: QemuExit) => void): void {
    running.delete(this.#child);
    this.#exit = exit;
    resolve(exit);
  }

  #record(text: string): void {
    this.#log = (this.#log + text).slice(-LOG_CHARS);
    if (this.#logFile) appendFileSync(this.#logFile, text, 'latin1');
  }

  #error(what: string): QemuError {
    const lines = this.#log.replaceAll('\r', '').trimEnd().split('\n').slice(-LOG_LINES_IN_ERRORS);
    return new QemuError(`${what}\n--- serial log ---\n${lines.join('\n')}\n------------------`);
  }
}

function qemuArguments(options: QemuOptions): string[] {
  const { machine = 'pc', memoryMiB = 512, cpus = 1, devices = [], ptnetArgs, extraArgs = [], append = '' } = options;
  const memory = `memory-backend-memfd,id=mem,size=${memoryMiB}M,share=on`;
  return [
    // Under TCG “max” costs nothing, and the default CPU has no SSE4.1, which WebAssembly's SIMD needs.
    ['-accel', 'tcg', '-cpu', 'max', '-nodefaults', '-display', 'none'],
    ['-smp', String(cpus), ...(ptnetArgs ?? ['-object', memory, '-machine', `${machine},memory-backend=mem`])],
    ['-chardev', 'stdio,id=console,signal=off', '-serial', 'chardev:console'],
    ['-chardev', 'socket,id=qmp,fd=3', '-qmp', 'chardev:qmp'],
    bootArguments(options, append),
    devices.flatMap((device) => ['-device', device]),
    extraArgs,
  ].flat();
}

function bootArguments({ kernel, initrd, disk }: QemuOptions, append: string): string[] {
  if (disk !== undefined) return ['-drive', `file=${disk.replaceAll(',', ',,')},if=virtio,snapshot=on`];
  if (kernel === undefined || initrd === undefined)
    throw new QemuError('a guest needs a kernel and an initrd, or a disk');
  return ['-kernel', kernel, '-initrd', initrd, '-append', `${KERNEL_ARGUMENTS} ${append}`];
}

function describeExit({ code, signal }: QemuExit): string {
  if (code === null && signal === null) return 'QEMU could not be started';
  return signal ? `QEMU was ended by ${signal}` : `QEMU ended with ${code}`;
}

/** `match` found the mark “@@rc=N”; the text before it is the output. */
function toResult(match: RegExpExecArray): CommandResult {
  const output = Buffer.from(match.input.slice(0, match.index), 'latin1').toString('utf8');
  return { rc: Number(match[1]), output };
}

// ---- What tests start with -------------------------------------------------------------------------------------

export interface GuestImage {
  readonly qemu: string;
  readonly kernel: string;
  readonly initrd: string;
}

/** Runs tools/get-qemu and tools/get-guest of the checkout in `root`; `guestArgs` go to the latter. */
export async function findQemuAndGuest(root: string, guestArgs: readonly string[] = []): Promise<GuestImage> {
  const execute = promisify(execFile);
  const [qemu, guest] = await Promise.all([
    execute(join(root, 'tools/get-qemu')),
    execute(join(root, 'tools/get-guest'), [...guestArgs]),
  ]);
  const { kernel, initrd } = JSON.parse(guest.stdout) as { kernel: string; initrd: string };
  return { qemu: qemu.stdout.trim(), kernel, initrd };
}

// ---- PCI devices, as the guest's sysfs shows them --------------------------------------------------------------

const IORESOURCE_IO = 0x100;
const IORESOURCE_MEM = 0x200;
const IORESOURCE_PREFETCH = 0x2000;
const IORESOURCE_MEM_64 = 0x100000;

/** Offsets in config space (PCI Local Bus Specification 3.0, 6.1 and 6.8.2). */
const PCI_COMMAND = 0x04;
const PCI_STATUS = 0x06;
const PCI_STATUS_CAP_LIST = 0x10;
const PCI_REVISION = 0x08;
const PCI_CAPABILITY_LIST = 0x34;
const PCI_INTERRUPT_PIN = 0x3d;
const PCI_CAP_ID_MSIX = 0x11;
const PCI_COMMAND_IO_MEMORY_MASTER = 7;
const CONFIG_BYTES = 256;
const BAR_COUNT = 6;

export interface PciBar {
  readonly bar: number;
  readonly kind: 'io' | 'memory';
  readonly start: bigint;
  readonly sizeBytes: number;
  readonly is64Bit: boolean;
  readonly isPrefetchable: boolean;
}

export interface PciMsix {
  readonly vectors: number;
  readonly tableBar: number;
  readonly tableOfs: number;
  readonly pbaBar: number;
  readonly pbaOfs: number;
}

export interface PciDevice {
  /** As in sysfs: 0000:00:02.0. */
  readonly bdf: string;
  readonly vendorId: number;
  readonly deviceId: number;
  /** 24 bits: class, subclass, programming interface. */
  readonly classCode: number;
  readonly revision: number;
  readonly interruptPin: number;
  readonly command: number;
  /** The BARs to which the guest has given an address. */
  readonly bars: readonly PciBar[];
  readonly msix: PciMsix | null;
  readonly config: DataView;
}

/** All PCI devices of the guest, in the order of their addresses. */
export async function readPciDevices(guest: QemuGuest): Promise<PciDevice[]> {
  const output = await guest.mustRun(
    `cd /sys/bus/pci/devices; for d in *; do echo "device $d"; head -c ${CONFIG_BYTES} $d/config | hexdump -v -e '/1 "%02x"'; echo; head -n ${BAR_COUNT} $d/resource; done`,
  );
  return output
    .split(/^device /m)
    .slice(1)
    .map(parsePciDevice);
}

/** `text`: the address, config space as hexadecimal digits, then a line “start end flags” for each BAR. */
function parsePciDevice(text: string): PciDevice {
  const [bdf = '', configHex = '', ...resources] = text.trim().split('\n');
  const bytes = Uint8Array.from(Buffer.from(configHex, 'hex'));
  if (bytes.length < 64) throw new QemuError(`config space of ${bdf} has ${bytes.length} bytes`);
  const config = new DataView(bytes.buffer);
  return {
    bdf,
    vendorId: config.getUint16(0, true),
    deviceId: config.getUint16(2, true),
    classCode: config.getUint32(PCI_REVISION, true) >>> 8,
    revision: config.getUint8(PCI_REVISION),
    interruptPin: config.getUint8(PCI_INTERRUPT_PIN),
    command: config.getUint16(PCI_COMMAND, true),
    bars: resources.flatMap(parsePciBar),
    msix: findMsix(config),
    config,
  };
}

function parsePciBar(line: string, bar: number): PciBar[] {
  const [start = 0n, end = 0n, flags = 0n] = line.split(' ').map(BigInt);
  const has = (flag: number): boolean => (flags & BigInt(flag)) !== 0n;
  if (!has(IORESOURCE_IO) && !has(IORESOURCE_MEM)) return [];
  return [
    {
      bar,
      kind: has(IORESOURCE_IO) ? 'io' : 'memory',
      start,
      sizeBytes: Number(end - start) + 1,
      is64Bit: has(IORESOURCE_MEM_64),
      isPrefetchable: has(IORESOURCE_PREFETCH),
    },
  ];
}

function findMsix(config: DataView): PciMsix | null {
  if ((config.getUint16(PCI_STATUS, true) & PCI_STATUS_CAP_LIST) === 0) return null;
  let ofs = config.getUint8(PCI_CAPABILITY_LIST);
  // A list can have at most this many members; a broken one may be a circle.
  for (let left = 48; ofs !== 0 && ofs + 12 <= config.byteLength && left > 0; left -= 1) {
    if (config.getUint8(ofs) === PCI_CAP_ID_MSIX) {
      const table = config.getUint32(ofs + 4, true);
      const pba = config.getUint32(ofs + 8, true);
      return {
        vectors: (config.getUint16(ofs + 2, true) & 0x7ff) + 1,
        tableBar: table & 7,
        tableOfs: (table & ~7) >>> 0,
        pbaBar: pba & 7,
        pbaOfs: (pba & ~7) >>> 0,
      };
    }
    ofs = config.getUint8(ofs + 1);
  }
  return null;
}

/** Lets a device without a driver answer: enables it, and sets I/O, memory and bus master in its COMMAND register. */
export async function enablePciDevice(guest: QemuGuest, bdf: string): Promise<void> {
  const folder = sysfsFolder(bdf);
  await guest.mustRun(`echo 1 > ${folder}/enable`);
  const command = Number.parseInt(await guest.mustRun(`${readWords(`${folder}/config`, PCI_COMMAND)}`), 16) & 0xffff;
  const wanted = command | PCI_COMMAND_IO_MEMORY_MASTER;
  await guest.mustRun(
    `printf '${octalBytes(wanted, 2)}' | dd of=${folder}/config bs=2 seek=${PCI_COMMAND / 2} count=1 conv=notrunc 2>/dev/null`,
  );
}

/** Reads a 32-bit register of an I/O-port BAR (sysfs passes read and write of 1, 2 and 4 bytes on to such a BAR). */
export async function readIoBar(guest: QemuGuest, bdf: string, bar: number, ofs: number): Promise<number> {
  const output = await guest.mustRun(readWords(`${sysfsFolder(bdf)}/resource${bar}`, ofs));
  if (!/^[0-9a-f]{8}$/.test(output)) throw new QemuError(`reading ${bdf} BAR ${bar} at ${ofs} gave “${output}”`);
  return Number.parseInt(output, 16);
}

/** Reads `count` consecutive 32-bit registers at once: a command in the guest takes some 10 ms. */
export async function readIoBarBlock(
  guest: QemuGuest,
  bdf: string,
  bar: number,
  ofs: number,
  count: number,
): Promise<number[]> {
  const output = await guest.mustRun(readWords(`${sysfsFolder(bdf)}/resource${bar}`, ofs, count));
  return (output.match(/.{8}/g) ?? []).map((digits) => Number.parseInt(digits, 16));
}

/** Writes a 32-bit register of an I/O-port BAR. */
export async function writeIoBar(
  guest: QemuGuest,
  bdf: string,
  bar: number,
  ofs: number,
  value: number,
): Promise<void> {
  const file = `${sysfsFolder(bdf)}/resource${bar}`;
  await guest.mustRun(
    `printf '${octalBytes(value, 4)}' | dd of=${file} bs=4 seek=${ofs / 4} count=1 conv=notrunc 2>/dev/null`,
  );
}

/** Reads 32 bits of the guest's physical address space: memory BARs, which sysfs only lets programs mmap. */
export async function readPhysical(guest: QemuGuest, address: bigint): Promise<number> {
  return Number.parseInt(await guest.mustRun(`devmem 0x${address.toString(16)} 32`), 16);
}

export async function writePhysical(guest: QemuGuest, address: bigint, value: number): Promise<void> {
  await guest.mustRun(`devmem 0x${address.toString(16)} 32 0x${(value >>> 0).toString(16)}`);
}

function sysfsFolder(bdf: string): string {
  return `/sys/bus/pci/devices/${bdf}`;
}

/** A shell command that prints little-endian 32-bit words of a file, each read by one access of 4 bytes. */
function readWords(file: string, ofs: number, count = 1): string {
  return `dd if=${file} bs=4 skip=${ofs / 4} count=${count} 2>/dev/null | hexdump -v -e '/4 "%08x"'`;
}

/** The escapes for printf that give a number's bytes, lowest first. */
function octalBytes(value: number, count: number): string {
  const byteAt = (index: number): number => (value >>> (8 * index)) & 0xff;
  return Array.from({ length: count }, (_, index) => `\\${byteAt(index).toString(8).padStart(3, '0')}`).join('');
}
