/**
 * A connected pair of transports without sockets, for tests and fuzzers. It keeps the kernel's rules for descriptors on
 * UNIX stream sockets: they are duplicated when sent, arrive with the first byte they were sent with, one receive never
 * goes past a byte that ends a part with descriptors, and more than fit are cut (truncated).
 */
import { closeFd, dup, errno, type Received, SysError, type Watch } from '../os/index.ts';
import type { Ready, Transport } from './transport.ts';

export interface MemoryTransportOptions {
  /** Most bytes of the next send or receive, at least 1 (default: no limit). Called once for each. */
  readonly fragment?: () => number;
  /** Bytes that one direction holds before sends find no room (default 64 KiB). */
  readonly capacity?: number;
  /** Most descriptors in one receive (default 16). */
  readonly maxFds?: number;
}

interface Part {
  bytes: Uint8Array;
  fds: number[];
}

/** One direction. */
class Pipe {
  readonly #opts: Required<MemoryTransportOptions>;
  readonly #parts: Part[] = [];
  #held = 0;
  writerGone = false;
  readerGone = false;

  constructor(opts: Required<MemoryTransportOptions>) {
    this.#opts = opts;
  }

  get readable(): boolean {
    return this.#held > 0 || this.writerGone;
  }

  get writable(): boolean {
    return this.#held < this.#opts.capacity || this.readerGone;
  }

  send(bytes: Uint8Array, fds: readonly number[]): number {
    if (this.readerGone) throw new SysError('send on a memory transport', errno.EPIPE);
    const n = Math.min(bytes.length, this.#opts.capacity - this.#held, this.#opts.fragment());
    if (n > 0) this.#parts.push({ bytes: bytes.slice(0, n), fds: fds.map(dup) });
    this.#held += n;
    return n;
  }

  receive(into: Uint8Array): Received {
    const out: Received = { bytes: 0, ended: false, again: false, fds: [], truncated: false };
    const most = Math.min(into.length, this.#opts.fragment());
    for (let part = this.#parts[0]; part !== undefined && out.bytes < most; part = this.#parts[0]) {
      const had = part.fds.length;
      for (const fd of part.fds) {
        if (out.fds.length < this.#opts.maxFds) out.fds.push(fd);
        else closeFd(fd);
      }
      out.truncated = had > this.#opts.maxFds;
      part.fds = [];
      const n = Math.min(part.bytes.length, most - out.bytes);
      into.set(part.bytes.subarray(0, n), out.bytes);
      out.bytes += n;
      this.#held -= n;
      part.bytes = part.bytes.subarray(n);
      if (part.bytes.length === 0) this.#parts.shift();
      if (had > 0) break;
    }
    out.ended = out.bytes === 0 && this.writerGone && into.length > 0;
    out.again = out.bytes === 0 && !out.ended;
    return out;
  }

  /** Drops what was not read. */
  drop(): void {
    for (const part of this.#parts) part.fds.forEach(closeFd);
    this.#parts.length = 0;
    this.#held = 0;
  }
}

class MemoryTransport implements Transport {
  readonly #in: Pipe;
  readonly #out: Pipe;
  #onReady: ((ready: Ready) => void) | undefined;
  #interest: Ready = { readable: true, writable: false };
  #scheduled = false;
  /** The other end. */
  peer: MemoryTransport | undefined;

  constructor(input: Pipe, output: Pipe) {
    this.#in = input;
    this.#out = output;
  }

  receive(into: Uint8Array): Received {
    const got = this.#in.receive(into);
    this.peer?.poll();
    return got;
  }

  send(bytes: Uint8Array, fds: readonly number[] = []): number {
    const n = this.#out.send(bytes, fds);
    this.peer?.poll();
    return n;
  }

  watch(onReady: (ready: Ready) => void): Watch {
    this.#onReady = onReady;
    this.poll();
    return {
      update: (interest) => {
        this.#interest = interest;
        this.poll();
      },
      close: () => {
        this.#onReady = undefined;
      },
    };
  }

  close(): void {
    this.#out.writerGone = true;
    this.#in.readerGone = true;
    this.#in.drop();
    this.peer?.poll();
  }

  /** Calls the watch on a later turn of the loop, as long as it is ready for what it waits for. */
  poll(): void {
    if (this.#scheduled || this.#onReady === undefined || !this.#any(this.#ready())) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      const ready = this.#ready();
      if (this.#any(ready)) this.#onReady?.(ready);
      this.poll();
    });
  }

  #ready(): Ready {
    return {
      readable: this.#interest.readable && this.#in.readable,
      writable: this.#interest.writable && this.#out.writable,
    };
  }

  #any(ready: Ready): boolean {
    return ready.readable || ready.writable;
  }
}

export function memoryTransportPair(opts: MemoryTransportOptions = {}): [Transport, Transport] {
  const all = {
    fragment: opts.fragment ?? (() => Number.MAX_SAFE_INTEGER),
    capacity: opts.capacity ?? 65536,
    maxFds: opts.maxFds ?? 16,
  };
  const aToB = new Pipe(all);
  const bToA = new Pipe(all);
  const a = new MemoryTransport(bToA, aToB);
  const b = new MemoryTransport(aToB, bToA);
  a.peer = b;
  b.peer = a;
  return [a, b];
}
