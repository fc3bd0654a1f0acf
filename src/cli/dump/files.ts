/** Where dump writes: one file, or several in turn by tcpdump's rules for -C and -W. */
import { type CaptureFormat, CaptureWriter } from '../pcap/writer.ts';

export interface FilePlan {
  /** A file, or "-" for stdout. */
  readonly path: string;
  readonly format: CaptureFormat;
  readonly snapLen: number;
  /** Bytes after which the next file is begun; 0: never. */
  readonly fileBytes: number;
  /** Files after which the first is written over; 0: never. */
  readonly fileCount: number;
}

/** Name of the n-th file: `path`, `path1`, `path2` …; in a ring `path0` on, with as many digits as the last needs. */
export function fileName({ path, fileBytes, fileCount }: FilePlan, n: number): string {
  if (fileBytes === 0) return path;
  if (fileCount === 0) return n === 0 ? path : `${path}${n}`;
  return path + String(n % fileCount).padStart(String(fileCount - 1).length, '0');
}

export class CaptureFiles {
  readonly #plan: FilePlan;
  readonly #port: string;
  #writer: CaptureWriter;
  #n = 0;
  /** Packets that were begun. */
  packets = 0;

  constructor(plan: FilePlan, port: string) {
    this.#plan = plan;
    this.#port = port;
    this.#writer = this.#open();
  }

  /** The file to write the next packet to. */
  next(): CaptureWriter {
    const { fileBytes } = this.#plan;
    if (fileBytes > 0 && this.#writer.bytes >= fileBytes) {
      this.#writer.close();
      this.#n += 1;
      this.#writer = this.#open();
    }
    this.packets += 1;
    return this.#writer;
  }

  /** Whether a reader has not taken so much that there is no room for a packet. */
  get full(): boolean {
    return this.#writer.full;
  }

  /** Writes what can be written now. */
  flush(): void {
    this.#writer.flush();
  }

  close(): void {
    this.#writer.close();
  }

  #open(): CaptureWriter {
    return new CaptureWriter(fileName(this.#plan, this.#n), this.#plan.format, this.#plan.snapLen, this.#port);
  }
}
