/**
 * Writing packet captures: pcap with nanoseconds, or pcapng (one section, one interface). A packet is begun, its pieces are
 * added, and it is ended; nothing is allocated for it. Data is written when `flush` is called or the buffer is full.
 */
import { closeSync, openSync, writeSync } from 'node:fs';
import { LINKTYPE_ETHERNET, PCAP, PCAPNG } from './format.ts';

export type CaptureFormat = 'pcap' | 'pcapng';

/** Direction of a packet in pcapng's epb_flags. */
export const INBOUND = 1;
export const OUTBOUND = 2;

const BUFFER = 1 << 20;

export class CaptureWriter {
  readonly #fd: number;
  readonly #format: CaptureFormat;
  readonly #snapLen: number;
  readonly #buffer = new Uint8Array(BUFFER);
  readonly #view = new DataView(this.#buffer.buffer);
  #at = 0;
  #record = 0;
  #captured = 0;
  #length = 0;
  #direction = 0;
  #closed = false;
  /** Bytes written, those not yet flushed included. */
  bytes = 0;

  /** @param path a file, or "-" for stdout @param snapLen most bytes of a packet that are kept, 1 to 262144 */
  constructor(path: string, format: CaptureFormat, snapLen: number, interfaceName: string) {
    this.#fd = path === '-' ? 1 : openSync(path, 'w');
    this.#format = format;
    this.#snapLen = snapLen;
    if (format === 'pcap') this.#pcapHeader();
    else this.#sectionHeader(interfaceName);
    this.bytes = this.#at;
  }

  /** Begins a packet. @param direction INBOUND, OUTBOUND or 0; pcap has no place for it */
  begin(seconds: number, nanoseconds: number, direction: number): void {
    if (this.full) this.flush(true);
    this.#record = this.#at;
    this.#captured = 0;
    this.#length = 0;
    this.#direction = direction;
    const v = this.#view;
    if (this.#format === 'pcap') {
      v.setUint32(this.#at, seconds, true);
      v.setUint32(this.#at + 4, nanoseconds, true);
      this.#at += PCAP.RECORD;
      return;
    }
    // Seconds * 10^9 + nanoseconds as two words: below 2^53, in steps of 2^32.
    const low = (seconds % 65536) * 1e9 + nanoseconds;
    const high = Math.floor(seconds / 65536) * 1e9; // times 65536
    const sumLow = low + (high % 65536) * 65536;
    v.setUint32(this.#at + 8, 0, true);
    v.setUint32(this.#at + 12, Math.floor(high / 65536) + Math.floor(sumLow / 2 ** 32), true);
    v.setUint32(this.#at + 16, sumLow % 2 ** 32, true);
    this.#at += 28;
  }

  /** Adds bytes to the packet. */
  add(from: Uint8Array, ofs: number, bytes: number): void {
    const n = Math.min(bytes, this.#snapLen - this.#captured);
    const to = this.#buffer;
    if (n <= 128) for (let i = 0; i < n; i++) to[this.#at + i] = from[ofs + i]!;
    else to.set(from.subarray(ofs, ofs + n), this.#at);
    this.#at += n;
    this.#captured += n;
    this.#length += bytes;
  }

  /** Ends the packet. */
  end(): void {
    const v = this.#view;
    const at = this.#record;
    if (this.#format === 'pcap') {
      v.setUint32(at + 8, this.#captured, true);
      v.setUint32(at + 12, this.#length, true);
    } else {
      while (this.#at % 4 !== at % 4) this.#buffer[this.#at++] = 0;
      if (this.#direction !== 0) {
        v.setUint16(this.#at, PCAPNG.EPB_FLAGS, true);
        v.setUint16(this.#at + 2, 4, true);
        v.setUint32(this.#at + 4, this.#direction, true);
        v.setUint32(this.#at + 8, 0, true); // end of options
        this.#at += 12;
      }
      v.setUint32(this.#at, this.#at + 4 - at, true);
      this.#at += 4;
      v.setUint32(at, PCAPNG.EPB, true);
      v.setUint32(at + 4, this.#at - at, true);
      v.setUint32(at + 20, this.#captured, true);
      v.setUint32(at + 24, this.#length, true);
    }
    this.bytes += this.#at - at;
  }

  /** Whether the buffer may have no room for a packet: `begin` would wait until what is in it is written. */
  get full(): boolean {
    // The longest record: header, packet, padding, options.
    return this.#at + this.#snapLen + 64 > BUFFER;
  }

  /**
   * Writes what is in the buffer; what a slow reader of a pipe does not take stays in it, unless it is waited for.
   * @throws an error of the file system: EPIPE when the reader of a pipe is gone
   */
  flush(wait = false): void {
    let done = 0;
    try {
      while (done < this.#at) {
        try {
          done += writeSync(this.#fd, this.#buffer, done, this.#at - done);
        } catch (e) {
          if ((e as NodeJS.ErrnoException).code !== 'EAGAIN') throw e;
          if (!wait) break;
          Atomics.wait(pause, 0, 0, 5);
        }
      }
    } finally {
      this.#buffer.copyWithin(0, done, this.#at);
      this.#at -= done;
    }
  }

  /** Writes all that is left and closes the file. Once closed, it does nothing. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    try {
      this.flush(true);
    } finally {
      if (this.#fd !== 1) closeSync(this.#fd);
    }
  }

  #pcapHeader(): void {
    const v = this.#view;
    v.setUint32(0, PCAP.MAGIC_NS, true);
    v.setUint16(4, 2, true); // version 2.4
    v.setUint16(6, 4, true);
    v.setUint32(16, this.#snapLen, true);
    v.setUint32(20, LINKTYPE_ETHERNET, true);
    this.#at = PCAP.HEADER;
  }

  #sectionHeader(interfaceName: string): void {
    const v = this.#view;
    v.setUint32(0, PCAPNG.SHB, true);
    v.setUint32(4, 28, true);
    v.setUint32(8, PCAPNG.BYTE_ORDER, true);
    v.setUint16(12, 1, true); // version 1.0
    v.setBigInt64(16, -1n, true); // length not given
    v.setUint32(24, 28, true);
    const at = 28;
    const name = Buffer.from(interfaceName);
    const padded = Math.ceil(name.length / 4) * 4;
    const bytes = 16 + (4 + padded) + 8 + 4 + 4;
    v.setUint32(at, PCAPNG.IDB, true);
    v.setUint32(at + 4, bytes, true);
    v.setUint16(at + 8, LINKTYPE_ETHERNET, true);
    v.setUint32(at + 12, this.#snapLen, true);
    v.setUint16(at + 16, PCAPNG.IF_NAME, true);
    v.setUint16(at + 18, name.length, true);
    this.#buffer.set(name, at + 20);
    const resolution = at + 20 + padded;
    v.setUint16(resolution, PCAPNG.IF_TSRESOL, true);
    v.setUint16(resolution + 2, 1, true);
    v.setUint8(resolution + 4, 9); // nanoseconds
    v.setUint32(at + bytes - 4, bytes, true);
    this.#at = at + bytes;
  }
}

const pause = new Int32Array(new SharedArrayBuffer(4));
