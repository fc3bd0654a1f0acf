// Watching a port from the host, through a monitor of it: `ptnet dump` into a file, of which the frames' lengths are read.

import { CaptureReader } from '../../../src/cli/pcap/reader.ts';
import { PtnetProcess } from '../ptnet.ts';

export class Watch {
  readonly port: string;
  readonly #file: string;
  readonly #dump: PtnetProcess;

  private constructor(runDir: string, port: string, file: string) {
    this.port = port;
    this.#file = file;
    // A ring that holds more than a hundred segments of 64 KiB, in a guest's buffers.
    const monitor = `${port}@conf:rx-slots=4096`;
    this.#dump = new PtnetProcess(['dump', '--run-dir', runDir, '-i', monitor, '-s', '64', '-w', file]);
  }

  /** @param port with the flags of a monitor: vale0:a/t @param file a new one */
  static async start(runDir: string, port: string, file: string): Promise<Watch> {
    const watch = new Watch(runDir, port, file);
    await watch.#dump.says(/listening on/);
    return watch;
  }

  /** Ends it, if it has not ended. */
  async close(): Promise<void> {
    await this.#dump.end();
  }

  /** Ends it. @returns the length of each frame that it saw */
  async stop(): Promise<number[]> {
    const status = await this.#dump.end();
    if (status !== 0) throw new Error(`ptnet dump of ${this.port} ended with ${status}: ${this.#dump.stderr}`);
    const reader = new CaptureReader(this.#file);
    const lengths: number[] = [];
    while (reader.next()) lengths.push(reader.length);
    reader.close();
    return lengths;
  }
}
