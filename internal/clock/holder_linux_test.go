package clock

import (
	"testing"

	"golang.org/x/sys/unix"
)

// Nothing else can show it without suspending the host.
func TestHolderCountsSuspension(t *testing.T) {
	if k, ok := Holder().(kernel); !ok || k.id != unix.CLOCK_BOOTTIME {
		t.Fatalf("holder's clock is %#v, want the kernel's CLOCK_BOOTTIME", Holder())
	}
}

func TestUnknownKernelClockFallsBack(t *testing.T) {
	if _, ok := system(-9999).(monotonic); !ok {
		t.Fatalf("got %#v, want Go's monotonic clock", system(-9999))
	}
}
