package archtest

import (
	"os"
	"path"
	"regexp"
	"testing"
)

// TestNamedTestsExist keeps the names of tests in docs/testing.md: who renames or
// removes one there knows what it was seen to catch.
func TestNamedTestsExist(t *testing.T) {
	const root = "../.."
	page, err := os.ReadFile(path.Join(root, "docs/testing.md"))
	if err != nil {
		t.Fatal(err)
	}
	tree, err := readTree(os.DirFS(root))
	if err != nil {
		t.Fatal(err)
	}
	have := map[string]bool{}
	for _, s := range tree {
		if !s.isTest() {
			continue
		}
		text, err := os.ReadFile(path.Join(root, s.path))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)\w+)\(`).FindAllSubmatch(text, -1) {
			have[string(m[1])] = true
		}
	}
	named := regexp.MustCompile("`((?:Test|Fuzz)\\w+)`").FindAllSubmatch(page, -1)
	if len(named) < 100 {
		t.Errorf("%d names were read", len(named))
	}
	for _, m := range named {
		if !have[string(m[1])] {
			t.Errorf("docs/testing.md names %s, which no test is called", m[1])
		}
	}
}
