/** The little of WebAssembly's JavaScript interface that is used here (it is part of TypeScript's browser library only). */

/** Bytes of a WebAssembly page. */
export const WASM_PAGE = 65536;

declare global {
  namespace WebAssembly {
    class Memory {
      constructor(descriptor: { initial: number; maximum: number; shared: true });
      readonly buffer: SharedArrayBuffer;
    }
    interface Module {
      readonly brand: 'WebAssembly.Module';
    }
    const Module: new (bytes: Uint8Array) => Module;
    class Instance {
      constructor(module: Module, imports: Record<string, Record<string, unknown>>);
      readonly exports: Record<string, unknown>;
    }
    /** What a trap throws. */
    class RuntimeError extends Error {}
  }
}
