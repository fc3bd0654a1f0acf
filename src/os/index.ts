/** Native calls, through koffi, and nothing else of ours. Errors are `SysError`: errno and what was attempted. */
export * from './bpf.ts';
export * from './errno.ts';
export * from './events.ts';
export * from './links.ts';
export * from './memory.ts';
export * from './netif.ts';
export * from './netlink.ts';
export * from './packet.ts';
export * from './pinned.ts';
export * from './process.ts';
export * from './routes.ts';
export * from './run-dir.ts';
export * from './sockets.ts';
export * from './spin.ts';
export * from './tap.ts';
export * from './vfio.ts';
export * from './xdp.ts';
