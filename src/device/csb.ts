/**
 * Mapping a client's CSB pages into the arena. The pages lie in the client's own memory, known from DMA_MAP; they are
 * mapped on their own, so that they outlive the remaps of a booting guest (docs/abi.md 4.7). Rule R1.
 */
import { CSB_PAGE_SIZE } from '../abi/index.ts';
import type { Arena } from '../memory/index.ts';
import { errno, F_SEAL_SHRINK, fileSize, getSeals, pageBytesOf, SysError } from '../os/index.ts';
import type { DmaRange, DmaTable } from '../vfio-user/index.ts';

/** Why a CSB page cannot be used; `errno` is what PTCTL then reads. */
export class CsbError extends Error {
  readonly errno: number;
  constructor(errnoValue: number, message: string) {
    super(message);
    this.name = 'CsbError';
    this.errno = errnoValue;
  }
}

/**
 * Maps the CSB page at a guest address into a window of the arena. Returns the arena address of the page.
 * @param window offset in the arena, @param windowBytes a page, or a huge page where clients may use those
 * @param trusted accept memory that is not sealed against shrinking
 * @throws CsbError
 */
export function mapCsbPage(
  arena: Arena,
  dma: DmaTable,
  which: 'atok' | 'ktoa',
  guestAddr: bigint,
  window: number,
  windowBytes: number,
  trusted: boolean,
): number {
  const where = `CSB page ${which} at guest address 0x${guestAddr.toString(16)}`;
  const found = dma.lookup(guestAddr, BigInt(CSB_PAGE_SIZE));
  if (found === undefined) {
    throw new CsbError(errno.ENXIO, `${where}: not in memory that the client shares (is its memory share=on?)`);
  }
  try {
    const start = mapPage(arena, found, where, window, windowBytes, trusted);
    return window + (found.fileOffset - start);
  } catch (e) {
    if (e instanceof SysError) throw new CsbError(errno.EFAULT, `${where}: ${e.message}`);
    throw e;
  }
}

/** Returns where in the file the page begins that was mapped. @throws CsbError, SysError */
function mapPage(
  arena: Arena,
  { fd, fileOffset }: DmaRange,
  where: string,
  window: number,
  windowBytes: number,
  trusted: boolean,
): number {
  // Only memfds have seals, so nothing below asks a file system of the client's own (FUSE) and waits for it.
  if (!trusted && (getSeals(fd) & F_SEAL_SHRINK) === 0) {
    throw new CsbError(
      errno.EPERM,
      `${where}: its memory is not sealed against shrinking; use memory-backend-memfd (which is), or trust this client's ` +
        'memory in the configuration (trustUnsealedMemory)',
    );
  }
  const pageBytes = pageBytesOf(fd);
  if (pageBytes > windowBytes) {
    throw new CsbError(
      errno.EINVAL,
      `${where}: lies on a huge page of ${pageBytes} bytes; this device takes pages of up to ${windowBytes} bytes`,
    );
  }
  if (fileOffset % CSB_PAGE_SIZE !== 0) throw new CsbError(errno.EINVAL, `${where}: not page aligned in its file`);
  const start = Math.floor(fileOffset / pageBytes) * pageBytes;
  const size = fileSize(fd);
  if (start + pageBytes > size) {
    throw new CsbError(errno.EFAULT, `${where}: offset ${fileOffset} is beyond the end of its file (${size} bytes)`);
  }
  arena.mapFile(window, pageBytes, fd, start);
  return start;
}
