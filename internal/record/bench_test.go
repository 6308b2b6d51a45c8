package record

import (
	"fmt"
	"testing"
	"time"
)

// realistic returns a record with n entries: one writer holds, the others wait.
func realistic(n int) *Record {
	rec := &Record{Kind: KindLock}
	for i := range n {
		op := acquire(ID("Vd8Tb1SnVHxAjnLm9rPfQa", uint64(1000+i)), X)
		op.Since = time.UnixMilli(1790000000000)
		next, _, _ := Apply(rec, 1790000000000000, []Op{op}, Limits{})
		rec = next
	}
	rec.Resolve(1790000000000001)
	return rec
}

var sizes = []int{1, 2, 10, 100, 1000}

func each(b *testing.B, run func(b *testing.B, rec *Record)) {
	for _, n := range sizes {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			rec := realistic(n)
			b.ReportAllocs()
			run(b, rec)
		})
	}
}

func BenchmarkAppend(b *testing.B) {
	each(b, func(b *testing.B, rec *Record) {
		var buf []byte
		for b.Loop() {
			buf = rec.Append(buf[:0])
		}
		b.SetBytes(int64(len(buf)))
	})
}

func BenchmarkDecode(b *testing.B) {
	each(b, func(b *testing.B, rec *Record) {
		stored := rec.Append(nil)
		b.SetBytes(int64(len(stored)))
		for b.Loop() {
			if _, err := Decode(stored); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkApplyFree is the uncontended path: acquire a free lock, then release it.
func BenchmarkApplyFree(b *testing.B) {
	ops := []Op{acquire("Vd8Tb1SnVHxAjnLm9rPfQa.1", X), release("Vd8Tb1SnVHxAjnLm9rPfQa.1")}
	b.ReportAllocs()
	for b.Loop() {
		held, _, _ := Apply(nil, 0, ops[:1], Limits{})
		Apply(held, 1, ops[1:], Limits{})
	}
}

// BenchmarkApplyHandover releases the holder of a contended record and queues it again.
func BenchmarkApplyHandover(b *testing.B) {
	each(b, func(b *testing.B, rec *Record) {
		rev := uint64(1790000000000002)
		for b.Loop() {
			id := rec.Holders[0].ID
			rec, _, _ = Apply(rec, rev, []Op{release(id), acquire(id, X)}, Limits{})
			rev++
		}
	})
}
