"use strict";
// What the rules of fusion mean, for those who do not know the compiler: [a part of the rule, the explanation].
// tests/test_page.py fails when passes/groups.py has a rule that is not here.
FG.HINTS = [
  [
    "which a reshape has renumbered",
    "A reshape between the two puts the elements into another order, so a point of one loop is no single point of the other.",
  ],
  [
    "reads other points than",
    "At one point of its loop the consumer needs several values of the producer, or another one than this loop has just made: a window, a shifted slice, another order of axes. They have to be stored first.",
  ],
  [
    "has an accumulator for each",
    "A sum, maximum or product is collected for each point of these axes and is complete only after its own loop. As one kernel they would have to share these axes, and the other one does not run over them in parallel.",
  ],
  [
    "do not share a register tile",
    "A matrix product or convolution keeps a tile of its results in registers. The second one needs whole rows of the first one's results, which are complete only when its tiles are stored.",
  ],
  [
    "third kernel stands between",
    "The value also reaches the consumer through another kernel. As one kernel the two would have to run both before and after it.",
  ],
  [
    "each needs the other's result",
    "The order of the two is fixed by other values: each waits for something of the other, or overwrites what it still reads.",
  ],
  [
    "too few points",
    "As one kernel they could only share the few axes that both run over, too few for all threads to have work.",
  ],
  [
    "walk through memory in short runs",
    "As one kernel they would go over the consumer's large arrays in another order than these lie in memory, a few elements here and a few there, only to save a handful of values that the producer would otherwise store.",
  ],
  [
    "a contraction's tile needs",
    "The register tile of a product runs over all of its output axes at once; the other kernel needs one of them as an inner loop.",
  ],
  [
    "exactly the contraction's output points",
    "Only operations on exactly the elements that a product makes can be done on its results while they are in registers.",
  ],
  [
    "reads its operands across the tile",
    "A product reads each operand many times, from many tiles. If the operand were made inside, it would be computed that often.",
  ],
  [
    "scatter writes elements that other points read",
    "Where a scatter writes is known only when it runs, so what reads its result has to wait until it is done.",
  ],
  [
    "only map and reduce kernels",
    "Kernels that do not need each other are put side by side only when both are plain loops.",
  ],
  [
    "over different spaces",
    "Kernels that do not need each other are put side by side only when their loops have the same extents.",
  ],
  [
    "would be overwritten while",
    "The kernel writes its result over memory that other points of the same kernel have yet to read.",
  ],
  [
    "read again after it is overwritten",
    "A state is written in place, and something in the kernel would read the old value after that.",
  ],
  [
    "operations one after the other",
    "A limit: very long bodies compile slowly and need more registers than there are.",
  ],
  ["values in one kernel", "A limit: a kernel with more values needs more registers than there are."],
  ["buffers in one kernel", "A limit: each buffer takes an address in a register."],
];
FG.hint = (rule) => FG.HINTS.find(([part]) => rule.includes(part))?.[1] ?? null;
