/** Layouts and constants of the binary contract, declared once, as tables. Imports nothing of ours. */
export * from './layout.ts';
export * from './netmap.ts';
export * from './ptnet.ts';
export * from './control.ts';
export * from './host.ts';
