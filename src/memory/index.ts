/** Arenas, regions and the netmap objects in them. */
export * from './arena.ts';
export * from './held-buffers.ts';
export * from './objects.ts';
export * from './region.ts';
