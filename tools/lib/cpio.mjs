// Writes cpio archives in the “newc” format, which is what Linux takes as initramfs
// (Documentation/driver-api/early-userspace/buffer-format.rst). Archives may simply be concatenated.

import { lstatSync, readFileSync, readdirSync, readlinkSync } from 'node:fs';
import { dirname, join } from 'node:path';

const S_IFDIR = 0o040000;
const S_IFREG = 0o100000;
const S_IFLNK = 0o120000;

export class CpioWriter {
  #chunks = [];
  #folders = new Set(['.']);
  #lastInode = 0;
  #sizeBytes = 0;

  folder(name) {
    if (this.#folders.has(name)) return;
    this.#parent(name);
    this.#folders.add(name);
    this.#entry(name, S_IFDIR | 0o755, Buffer.alloc(0));
  }

  file(name, data, mode = 0o644) {
    this.#parent(name);
    this.#entry(name, S_IFREG | mode, Buffer.from(data));
  }

  symlink(name, target) {
    this.#parent(name);
    this.#entry(name, S_IFLNK | 0o777, Buffer.from(target));
  }

  /** Adds a file or folder of this machine, with all that is in it. */
  copy(source, name) {
    const status = lstatSync(source);
    if (status.isSymbolicLink()) {
      this.symlink(name, readlinkSync(source));
    } else if (status.isDirectory()) {
      this.folder(name);
      for (const child of readdirSync(source).sort()) this.copy(join(source, child), `${name}/${child}`);
    } else if (status.isFile()) {
      this.file(name, readFileSync(source), status.mode & 0o755);
    }
  }

  /** Ends the archive; returns its pieces in order. */
  end() {
    this.#entry('TRAILER!!!', 0, Buffer.alloc(0));
    this.#pad(512);
    return this.#chunks;
  }

  #parent(name) {
    this.folder(dirname(name));
  }

  #entry(name, mode, data) {
    const nameBytes = Buffer.from(`${name}\0`);
    this.#lastInode += 1;
    // ino, mode, uid, gid, nlink, mtime, filesize, device (4 numbers), namesize, check
    const fields = [this.#lastInode, mode, 0, 0, 1, 0, data.length, 0, 0, 0, 0, nameBytes.length, 0];
    const header = `070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`;
    this.#write(Buffer.from(header));
    this.#write(nameBytes);
    this.#pad(4);
    this.#write(data);
    this.#pad(4);
  }

  #write(bytes) {
    this.#chunks.push(bytes);
    this.#sizeBytes += bytes.length;
  }

  #pad(alignment) {
    this.#write(Buffer.alloc((alignment - (this.#sizeBytes % alignment)) % alignment));
  }
}
