/**
 * Layout tables: every struct of the binary contract is declared once, as a table of field offsets and types, from which
 * come the accessors used in TypeScript, the offsets used in AssemblyScript (tools/build-datapath.ts), the dumps and
 * the checks of the tests.
 *
 * All multi-byte fields are little endian, as are the machines we run on (checked by `views`).
 */

export type FieldType = 'u8' | 'u16' | 'u32' | 'u64' | 'i64' | 'bytes';

/** Bytes of one element of each field type; `bytes` fields give their own length. */
const widths: Record<Exclude<FieldType, 'bytes'>, number> = { u8: 1, u16: 2, u32: 4, u64: 8, i64: 8 };

/** [byte offset, type] or, for `bytes`, [byte offset, 'bytes', length]. */
export type FieldSpec = readonly [ofs: number, type: FieldType, bytes?: number];

/** One view of each width over one memory. Every view starts at byte 0 of the memory, so that offsets are shared. */
export interface Views {
  readonly u8: Uint8Array;
  readonly u16: Uint16Array;
  readonly u32: Uint32Array;
  readonly i32: Int32Array;
  readonly u64: BigUint64Array;
}

/** Views over a whole buffer. @throws RangeError on a big-endian machine, or if the length is no multiple of 8. */
export function views(buffer: ArrayBufferLike): Views {
  if (new Uint8Array(new Uint16Array([1]).buffer)[0] !== 1) throw new RangeError('ptnet needs a little-endian machine');
  return {
    u8: new Uint8Array(buffer),
    u16: new Uint16Array(buffer),
    u32: new Uint32Array(buffer),
    i32: new Int32Array(buffer),
    u64: new BigUint64Array(buffer),
  };
}

type Value<T extends FieldType> = T extends 'u64' | 'i64' ? bigint : number;
type Scalars<F extends Record<string, FieldSpec>> = { [K in keyof F as F[K][1] extends 'bytes' ? never : K]: F[K] };

export interface Struct<F extends Record<string, FieldSpec>> {
  readonly name: string;
  /** Bytes from one element to the next in an array of this struct. */
  readonly size: number;
  readonly fields: F;
  /** Byte offset of each field. */
  readonly ofs: { readonly [K in keyof F]: number };
  /** `get.field(views, address)`: plain (not atomic) load. 64-bit fields are bigint: for control code only. */
  readonly get: { readonly [K in keyof Scalars<F>]: (m: Views, p: number) => Value<F[K][1]> };
  /** `set.field(views, address, value)`: plain store. */
  readonly set: { readonly [K in keyof Scalars<F>]: (m: Views, p: number, v: Value<F[K][1]>) => void };
}

/**
 * Declares a struct. The table is checked: fields inside the struct, naturally aligned, not overlapping.
 * @throws RangeError if the table is inconsistent.
 */
export function struct<const F extends Record<string, FieldSpec>>(name: string, size: number, fields: F): Struct<F> {
  const ofs: Record<string, number> = {};
  const get: Record<string, unknown> = {};
  const set: Record<string, unknown> = {};
  let end = 0;
  for (const [key, [o, type, bytes]] of Object.entries(fields)) {
    const width = type === 'bytes' ? (bytes ?? 0) : widths[type];
    if (width === 0) throw new RangeError(`${name}.${key}: a bytes field needs a length`);
    if (type !== 'bytes' && o % width !== 0) throw new RangeError(`${name}.${key}: offset ${o} is not aligned`);
    if (o < end || o + width > size) throw new RangeError(`${name}.${key}: offset ${o} overlaps or leaves the struct`);
    end = o + width;
    ofs[key] = o;
    // A function literal of its own for each width keeps these monomorphic and free (measured).
    switch (type) {
      case 'u8':
        get[key] = (m: Views, p: number) => m.u8[p + o]!;
        set[key] = (m: Views, p: number, v: number) => void (m.u8[p + o] = v);
        break;
      case 'u16':
        get[key] = (m: Views, p: number) => m.u16[(p + o) >>> 1]!;
        set[key] = (m: Views, p: number, v: number) => void (m.u16[(p + o) >>> 1] = v);
        break;
      case 'u32':
        get[key] = (m: Views, p: number) => m.u32[(p + o) >>> 2]!;
        set[key] = (m: Views, p: number, v: number) => void (m.u32[(p + o) >>> 2] = v);
        break;
      case 'u64':
        get[key] = (m: Views, p: number) => m.u64[(p + o) >>> 3]!;
        set[key] = (m: Views, p: number, v: bigint) => void (m.u64[(p + o) >>> 3] = v);
        break;
      case 'i64':
        get[key] = (m: Views, p: number) => BigInt.asIntN(64, m.u64[(p + o) >>> 3]!);
        set[key] = (m: Views, p: number, v: bigint) => void (m.u64[(p + o) >>> 3] = v);
        break;
      case 'bytes':
        break;
    }
  }
  return { name, size, fields, ofs, get, set } as unknown as Struct<F>;
}

/** Bytes of a field of a table (for dumps, generated code and checks). */
export function fieldBytes(spec: FieldSpec): number {
  return spec[1] === 'bytes' ? (spec[2] ?? 0) : widths[spec[1]];
}

/** A readable dump of one struct, scalar fields only: `name: value` pairs in the order of the table. */
export function dump<F extends Record<string, FieldSpec>>(s: Struct<F>, m: Views, p: number): Record<string, string> {
  const out: Record<string, string> = {};
  const get = s.get as Record<string, (m: Views, p: number) => number | bigint>;
  for (const key of Object.keys(get)) out[key] = String(get[key]!(m, p));
  return out;
}
