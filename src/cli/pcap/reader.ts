/**
 * Reading packet captures: pcap (draft-ietf-opsawg-pcap; microseconds and nanoseconds, either byte order) and pcapng
 * (draft-ietf-opsawg-pcapng; enhanced, simple and the old packet blocks). A file is read in pieces, a packet is a view on
 * the piece: valid until the next.
 *
 * Our own, because no package fits: npm's readers are bindings with an install script, or make a stream event and a Buffer
 * for each packet.
 */
import { closeSync, openSync, readSync } from 'node:fs';
import { LINKTYPE_ETHERNET, PCAP, PCAPNG } from './format.ts';

/** A file is not a capture, or ends in the middle. */
export class CaptureError extends Error {
  constructor(message: string) {
    super(message);
    this.name = 'CaptureError';
  }
}

/** More than any capture's record has: 256 KiB, tcpdump's largest snap length. */
const MAX_RECORD = 262144 + 4096;

interface Interface {
  readonly linkType: number;
  readonly snapLen: number;
  /** Units of a time stamp in a second, and seconds to add. */
  readonly perSecond: bigint;
  readonly offset: number;
}

export class CaptureReader {
  readonly format: 'pcap' | 'pcapng';
  /** LINKTYPE_ of the packet that `next` found. */
  linkType = LINKTYPE_ETHERNET;
  /** Time of the packet: seconds since 1970, nanoseconds. */
  seconds = 0;
  nanoseconds = 0;
  /** Bytes that it had; `data` may have fewer. */
  length = 0;
  /** Captured bytes; valid until the next call of `next`. */
  data: Uint8Array = new Uint8Array(0);
  readonly #path: string;
  readonly #fd: number;
  #buffer = new Uint8Array(1 << 20);
  #view = new DataView(this.#buffer.buffer);
  #at = 0;
  #end = 0;
  #little = true;
  /** pcap: nanoseconds of a unit of the fraction. */
  #unit = 1000;
  #interfaces: Interface[] = [];

  /** @param path a file, or "-" for stdin @throws CaptureError, an error of the file system */
  constructor(path: string) {
    this.#path = path;
    this.#fd = path === '-' ? 0 : openSync(path, 'r');
    try {
      const magic = this.#fill(4) ? this.#view.getUint32(0, true) : 0;
      if (magic === PCAPNG.SHB) this.format = 'pcapng';
      else {
        this.format = 'pcap';
        this.#pcapHeader(magic);
      }
    } catch (e) {
      this.close();
      throw e;
    }
  }

  /** Goes to the next packet; false at the end of the file. @throws CaptureError */
  next(): boolean {
    return this.format === 'pcap' ? this.#nextRecord() : this.#nextBlock();
  }

  close(): void {
    if (this.#fd > 0) closeSync(this.#fd);
  }

  #pcapHeader(magic: number): void {
    const swapped = new DataView(new ArrayBuffer(4));
    swapped.setUint32(0, magic, true);
    const big = swapped.getUint32(0);
    this.#little = magic === PCAP.MAGIC_US || magic === PCAP.MAGIC_NS;
    const known = this.#little ? magic : big;
    if (known !== PCAP.MAGIC_US && known !== PCAP.MAGIC_NS) this.#bad('is neither pcap nor pcapng');
    this.#unit = known === PCAP.MAGIC_NS ? 1 : 1000;
    if (!this.#fill(PCAP.HEADER)) this.#bad('ends in its header');
    // The upper bits say whether there is an FCS, and how long it is.
    this.linkType = this.#u32(20) & 0xffff;
    this.#at += PCAP.HEADER;
  }

  #nextRecord(): boolean {
    if (!this.#fill(1)) return false;
    if (!this.#fill(PCAP.RECORD)) this.#bad('ends in the header of a packet');
    this.seconds = this.#u32(0);
    this.nanoseconds = this.#u32(4) * this.#unit;
    const captured = this.#u32(8);
    this.length = this.#u32(12);
    this.#take(PCAP.RECORD, captured, PCAP.RECORD + captured);
    return true;
  }

  #nextBlock(): boolean {
    for (;;) {
      if (!this.#fill(1)) return false;
      if (!this.#fill(12)) this.#bad('ends in the header of a block');
      if (this.#view.getUint32(this.#at, true) === PCAPNG.SHB) {
        // Its byte order is told by the word behind its length.
        this.#little = this.#view.getUint32(this.#at + 8, true) === PCAPNG.BYTE_ORDER;
        if (!this.#little && this.#view.getUint32(this.#at + 8) !== PCAPNG.BYTE_ORDER) {
          this.#bad('has a section without byte order');
        }
        this.#interfaces = [];
      }
      const type = this.#u32(0);
      const bytes = this.#u32(4);
      if (bytes < 12 || bytes % 4 !== 0) this.#bad(`has a block of ${bytes} bytes`);
      if (type === PCAPNG.EPB || type === PCAPNG.OPB || type === PCAPNG.SPB) {
        this.#packetBlock(type, bytes);
        return true;
      }
      if (bytes > MAX_RECORD) this.#skip(bytes);
      else {
        if (!this.#fill(bytes)) this.#bad('ends in a block');
        if (type === PCAPNG.IDB) {
          if (bytes < 20) this.#bad(`has a description of an interface of ${bytes} bytes`);
          this.#interfaces.push(this.#interface(bytes));
        }
        this.#at += bytes;
      }
    }
  }

  #packetBlock(type: number, bytes: number): void {
    if (bytes > MAX_RECORD) this.#bad(`has a packet of ${bytes} bytes`);
    if (!this.#fill(bytes)) this.#bad('ends in a packet');
    const simple = type === PCAPNG.SPB;
    const head = simple ? 12 : 28;
    if (bytes < head + 4) this.#bad(`has a packet block of ${bytes} bytes`);
    const id = simple ? 0 : type === PCAPNG.EPB ? this.#u32(8) : this.#u16(8);
    const from = this.#interfaces[id];
    if (from === undefined) this.#bad(`has a packet of an interface that it does not describe (${id})`);
    this.linkType = from.linkType;
    if (simple) {
      this.length = this.#u32(8);
      this.seconds = 0;
      this.nanoseconds = 0;
      const room = bytes - head - 4;
      this.#take(head, Math.min(this.length, from.snapLen > 0 ? from.snapLen : room, room), bytes);
      return;
    }
    const stamp = (BigInt(this.#u32(12)) << 32n) + BigInt(this.#u32(16));
    this.seconds = Number(stamp / from.perSecond) + from.offset;
    this.nanoseconds = Number(((stamp % from.perSecond) * 1_000_000_000n) / from.perSecond);
    const captured = this.#u32(20);
    this.length = this.#u32(24);
    if (captured > bytes - head - 4) this.#bad(`has a packet of ${captured} bytes in a block of ${bytes}`);
    this.#take(head, captured, bytes);
  }

  #interface(bytes: number): Interface {
    let perSecond = 1_000_000n;
    let offset = 0;
    for (let at = 16; at + 4 <= bytes - 4; ) {
      const code = this.#u16(at);
      const length = this.#u16(at + 2);
      if (code === 0 || at + 4 + length > bytes - 4) break;
      if (code === PCAPNG.IF_TSRESOL && length >= 1) {
        const resolution = this.#view.getUint8(this.#at + at + 4);
        perSecond = resolution < 128 ? 10n ** BigInt(resolution) : 2n ** BigInt(resolution & 127);
      }
      if (code === PCAPNG.IF_TSOFFSET && length >= 8) {
        offset = Number(this.#view.getBigInt64(this.#at + at + 4, this.#little));
      }
      at += 4 + Math.ceil(length / 4) * 4;
    }
    return { linkType: this.#u16(8), snapLen: this.#u32(12), perSecond, offset };
  }

  /** Sets `data`, and goes past the record. */
  #take(head: number, captured: number, bytes: number): void {
    if (captured > MAX_RECORD) this.#bad(`has a packet of ${captured} bytes`);
    if (!this.#fill(head + captured)) this.#bad('ends in a packet');
    this.data = this.#buffer.subarray(this.#at + head, this.#at + head + captured);
    this.#at += bytes;
  }

  #u32(ofs: number): number {
    return this.#view.getUint32(this.#at + ofs, this.#little);
  }
  #u16(ofs: number): number {
    return this.#view.getUint16(this.#at + ofs, this.#little);
  }

  #skip(bytes: number): void {
    for (let left = bytes; left > 0; ) {
      if (!this.#fill(1)) this.#bad('ends in a block');
      const n = Math.min(left, this.#end - this.#at);
      this.#at += n;
      left -= n;
    }
  }

  /** Makes at least `bytes` bytes available at #at; false if the file has not so many. */
  #fill(bytes: number): boolean {
    if (this.#end - this.#at >= bytes) return true;
    this.#buffer.copyWithin(0, this.#at, this.#end);
    this.#end -= this.#at;
    this.#at = 0;
    while (this.#end < bytes) {
      const n = this.#read();
      if (n === 0) return false;
      this.#end += n;
    }
    return true;
  }

  #read(): number {
    for (;;) {
      try {
        return readSync(this.#fd, this.#buffer, this.#end, this.#buffer.length - this.#end, null);
      } catch (e) {
        if ((e as NodeJS.ErrnoException).code === 'EOF') return 0;
        if ((e as NodeJS.ErrnoException).code !== 'EAGAIN') throw e;
        Atomics.wait(pause, 0, 0, 5); // a terminal or pipe that was made non-blocking
      }
    }
  }

  #bad(what: string): never {
    throw new CaptureError(`${this.#path === '-' ? 'stdin' : this.#path} ${what}`);
  }
}

const pause = new Int32Array(new SharedArrayBuffer(4));
