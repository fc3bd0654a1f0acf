/** A device that records what it is asked, descriptor counting, and raw messages, for the tests of this folder. */
import { readdirSync, readlinkSync } from 'node:fs';
import { closeFd, connectUnix, eventfd, memfd, socketPair } from '../../../src/os/index.ts';
import {
  type DmaMap,
  type DmaUnmap,
  memoryTransportPair,
  type MemoryTransportOptions,
  type RegionInfo,
  type RegionIoFd,
  ServerConnection,
  type ServerOptions,
  type SetIrqs,
  socketTransport,
  type Transport,
  VfioUserClient,
  type VfioUserDevice,
  VfioUserError,
} from '../../../src/vfio-user/index.ts';

export { closeFd, connectUnix, eventfd, memfd };

/** Open descriptors of the kinds that travel here: memory files, eventfds, sockets. The runtime opens files of its own now and then. */
export const openFds = (): number =>
  readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return /^(\/memfd:|anon_inode:|socket:)/.test(readlinkSync(`/proc/self/fd/${fd}`));
    } catch {
      return false; // closed meanwhile
    }
  }).length;

/**
 * Region 0: 256 bytes, read and write, with two ioeventfds that share one descriptor. Region 1: a file that can be
 * mapped. Region 2: absent. Region 3: read only, 2 MiB. Interrupt index 2 has 40 vectors; index 3 refuses.
 */
export class RecordingDevice implements VfioUserDevice {
  readonly numRegions = 4;
  readonly numIrqs = 5;
  readonly deviceFlags = 3;
  readonly calls: string[] = [];
  readonly memory = new Uint8Array(256);
  readonly barFd = memfd('bar', 8192);
  readonly kickFd = eventfd();
  /** Descriptors that the device took. */
  readonly taken: number[] = [];
  /** Runs first in every handler; may throw or delay it. */
  hook: (call: string) => void | Promise<void> = () => {};

  regionInfo(index: number): RegionInfo {
    if (index === 0) return { size: 256, flags: 3 };
    if (index === 1) return { size: 8192n, flags: 7, fd: this.barFd, fdOffset: 4096 };
    if (index === 2) return { size: 0, flags: 0 };
    return { size: 2 << 20, flags: 1 };
  }

  irqInfo(index: number): { flags: number; count: number } {
    if (index === 3) throw new VfioUserError(22, 'no such interrupt');
    return index === 2 ? { flags: 9, count: 40 } : { flags: 0, count: 0 };
  }

  regionIoFds(index: number): RegionIoFd[] {
    if (index !== 0) return [];
    return [
      { fd: this.kickFd, offset: 128, size: 4 },
      { fd: this.kickFd, offset: 132, size: 4, flags: 1, datamatch: 7n },
    ];
  }

  dmaMap(m: DmaMap): void | Promise<void> {
    if (m.fd !== undefined) this.taken.push(m.fd);
    return this.#call(`dmaMap ${m.iova} ${m.size} ${m.flags} ${m.offset} ${m.fd === undefined ? 'no fd' : 'fd'}`);
  }

  dmaUnmap(m: DmaUnmap): void | Promise<void> {
    return this.#call(`dmaUnmap ${m.iova} ${m.size} ${m.flags}`);
  }

  regionRead(index: number, offset: number, count: number): Uint8Array | Promise<Uint8Array> {
    const done = this.#call(`regionRead ${index} ${offset} ${count}`);
    const data = index === 0 ? this.memory.subarray(offset, offset + count) : new Uint8Array(count);
    return done instanceof Promise ? done.then(() => data) : data;
  }

  regionWrite(index: number, offset: number, data: Uint8Array): void | Promise<void> {
    const done = this.#call(`regionWrite ${index} ${offset} ${Buffer.from(data).toString('hex')}`);
    if (index === 0) this.memory.set(data, offset);
    return done;
  }

  setIrqs(r: SetIrqs): void | Promise<void> {
    this.taken.push(...r.fds);
    return this.#call(`setIrqs ${r.index} 0x${r.flags.toString(16)} ${r.start} ${r.count} ${r.fds.length}`);
  }

  reset(): void | Promise<void> {
    return this.#call('reset');
  }

  disconnected(): void | Promise<void> {
    return this.#call('disconnected');
  }

  /** Closes what the device owns. */
  destroy(): void {
    for (const fd of [this.barFd, this.kickFd, ...this.taken.splice(0)]) closeFd(fd);
  }

  #call(call: string): void | Promise<void> {
    this.calls.push(call);
    return this.hook(call);
  }
}

export type Kind = 'memory' | 'bytewise memory' | 'socket';
export const kinds: readonly Kind[] = ['memory', 'bytewise memory', 'socket'];

/** A connected pair of the named kind. */
export function transportPair(kind: Kind, opts: MemoryTransportOptions = {}): [Transport, Transport] {
  if (kind === 'socket') {
    const [a, b] = socketPair();
    return [socketTransport(a), socketTransport(b)];
  }
  return memoryTransportPair(kind === 'memory' ? opts : { ...opts, fragment: () => 1 });
}

/** A served device with the raw other end: tests write and read bytes there. */
export interface Raw extends AsyncDisposable {
  readonly device: RecordingDevice;
  readonly server: ServerConnection;
  readonly wire: Wire;
  readonly log: string[];
}

export function serveRaw(kind: Kind = 'memory', opts: ServerOptions = {}, mem: MemoryTransportOptions = {}): Raw {
  const [a, b] = transportPair(kind, mem);
  const device = new RecordingDevice();
  const log: string[] = [];
  const server = new ServerConnection(a, device, { log: (line) => log.push(line), ...opts });
  const wire = new Wire(b);
  return { device, server, wire, log, [Symbol.asyncDispose]: () => end(() => wire.close(), server, device) };
}

/** Ends both sides, so that a failed test leaves nothing that keeps the process alive. */
async function end(close: () => void, server: ServerConnection, device: RecordingDevice): Promise<void> {
  close();
  await server.closed;
  device.destroy();
}

export interface Served extends AsyncDisposable {
  readonly device: RecordingDevice;
  readonly server: ServerConnection;
  readonly client: VfioUserClient;
  readonly log: string[];
}

/** A served device with a client that has negotiated. */
export async function serveClient(
  kind: Kind = 'memory',
  opts: ServerOptions = {},
  device = new RecordingDevice(),
): Promise<Served> {
  const [a, b] = transportPair(kind);
  const log: string[] = [];
  const server = new ServerConnection(a, device, { log: (line) => log.push(line), ...opts });
  const client = new VfioUserClient(b);
  await client.negotiate();
  return { device, server, client, log, [Symbol.asyncDispose]: () => end(() => client.close(), server, device) };
}

/** One turn of the event loop, for everything that is ready. */
export const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** The bytes of a message. `body`: hexadecimal with spaces, or bytes. */
export function frame(
  id: number,
  cmd: number,
  body: string | Uint8Array = '',
  opts: { flags?: number; error?: number; size?: number } = {},
): Uint8Array {
  const data = typeof body === 'string' ? Buffer.from(body.replaceAll(/\s/g, ''), 'hex') : body;
  const out = Buffer.alloc(16 + data.length);
  out.writeUInt16LE(id, 0);
  out.writeUInt16LE(cmd, 2);
  out.writeUInt32LE(opts.size ?? out.length, 4);
  out.writeUInt32LE(opts.flags ?? 0, 8);
  out.writeUInt32LE(opts.error ?? 0, 12);
  out.set(data, 16);
  return new Uint8Array(out);
}

/** VERSION 0.0 with this JSON text and its NUL. */
export const versionFrame = (json: string, major = 0): Uint8Array =>
  frame(1, 1, Buffer.concat([Buffer.from([major, 0, 0, 0]), Buffer.from(json), Buffer.from([0])]));

export interface RawReply {
  readonly id: number;
  readonly cmd: number;
  readonly flags: number;
  readonly error: number;
  readonly body: string;
  readonly fds: number[];
}

/** The raw end of a connection. */
export class Wire {
  readonly transport: Transport;
  constructor(transport: Transport) {
    this.transport = transport;
  }

  /** Sends all bytes, waiting for room. */
  async send(bytes: Uint8Array, fds: readonly number[] = []): Promise<void> {
    let attached = fds;
    for (let at = 0; at < bytes.length; ) {
      const n = this.transport.send(bytes.subarray(at), attached);
      if (n > 0) attached = [];
      else await turn();
      at += n;
    }
  }

  /** The next message, waiting for it; undefined at the end of the stream. */
  async receive(): Promise<RawReply | undefined> {
    const fds: number[] = [];
    const header = await this.#exactly(16, fds);
    if (header === undefined) return undefined;
    const body = await this.#exactly(header.readUInt32LE(4) - 16, fds);
    return {
      id: header.readUInt16LE(0),
      cmd: header.readUInt16LE(2),
      flags: header.readUInt32LE(8),
      error: header.readUInt32LE(12),
      body: body?.toString('hex') ?? '',
      fds,
    };
  }

  async call(bytes: Uint8Array, fds: readonly number[] = []): Promise<RawReply | undefined> {
    await this.send(bytes, fds);
    return await this.receive();
  }

  close(): void {
    this.transport.close();
  }

  async #exactly(n: number, fds: number[]): Promise<Buffer | undefined> {
    const out = Buffer.alloc(n);
    for (let at = 0; at < n; ) {
      const got = this.transport.receive(out.subarray(at));
      fds.push(...got.fds);
      if (got.ended) return undefined;
      if (got.again) await turn();
      at += got.bytes;
    }
    return out;
  }
}
