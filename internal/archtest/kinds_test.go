package archtest

import (
	"os"
	"path"
	"regexp"
	"strings"
	"testing"
)

// TestTheEngineNamesNoKind keeps what a record's kinds differ in out of the engine, which asks the record
// and the operation: a new kind changes nothing there.
func TestTheEngineNamesNoKind(t *testing.T) {
	const root = "../.."
	tree, err := readTree(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	files := 0
	for _, s := range tree {
		if s.isTest() || s.pkg != "internal/engine" {
			continue
		}
		files++
		text, err := os.ReadFile(path.Join(root, s.path))
		if err != nil {
			t.Fatal(err)
		}
		if names := regexp.MustCompile(`Kind[A-Z]\w*|Holders|Waiters|OpConvert`).FindAllString(string(text), -1); len(names) > 0 {
			t.Errorf("%s: %s", s.path, strings.Join(names, ", "))
		}
	}
	if files < 10 {
		t.Errorf("%d files were read", files)
	}
}
