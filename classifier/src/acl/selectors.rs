//! Which rules' sides a tag is on.
//!
//! A *selector* is one distinct set of tags that some rule names on this side; rules that name the
//! same set share it. A *class* is one distinct list of selectors that some tag is in. Rules tell
//! tags of one class not apart, so all that follows knows classes only: there are as many as the
//! rules make, however many tags there are.
//!
//! With prefixes as tags, the class of an address is the longest prefix that a rule names on this
//! side, and its selectors are the prefixes around that one.
//!
//! Selectors that no rule names any more, and classes that no tag is in, are left where they are until
//! there are more of them than of others. Then all are numbered anew.

use hashbrown::{HashMap, HashTable};

use crate::snapshot::{Tag, TagSet};

/// The selector of all tags. Every class has it.
pub(super) const ANY: u32 = 0;

/// One side's selectors and classes, by number.
#[derive(Clone, Debug)]
pub(super) struct Selectors {
    /// The tags of each selector; of [`ANY`], none.
    sets: Vec<Box<[Tag]>>,
    /// How many rules name each.
    uses: Vec<u32>,
    /// Selectors but [`ANY`] that none names.
    unused: usize,
    by_set: HashTable<u32>,
    /// The selectors of each class, ascending.
    classes: Vec<Box<[u32]>>,
    by_selectors: HashMap<Box<[u32]>, u32>,
    /// The class of each tag; tags beyond have the class of no set.
    of_tag: Vec<u32>,
}

impl Selectors {
    /// The class of a tag that no set has.
    const OTHERS: u32 = 0;

    /// What there may be of no use before it is worth an effort.
    const SLACK: usize = if cfg!(test) { 0 } else { 1_024 };

    /// The selectors of all these sets, and the number of each set's.
    pub(super) fn new<'a>(sets: impl Iterator<Item = &'a TagSet>) -> (Self, Vec<u32>) {
        let mut selectors = Self {
            sets: vec![Box::default()],
            uses: vec![0],
            unused: 0,
            by_set: HashTable::new(),
            classes: Vec::new(),
            by_selectors: HashMap::new(),
            of_tag: Vec::new(),
        };
        let mut number = |set: &TagSet| {
            let (number, _) = selectors.intern(set);
            selectors.uses[number as usize] += 1;
            number
        };
        let numbers = sets.map(&mut number).collect();
        selectors.classify();
        (selectors, numbers)
    }

    /// Finds every tag's class.
    fn classify(&mut self) {
        self.classes.clear();
        self.by_selectors.clear();
        self.class(&[ANY]);
        let mut lists: Vec<Vec<u32>> = Vec::new();
        for (number, set) in self.sets.iter().enumerate() {
            for &Tag(tag) in set {
                if lists.len() <= tag as usize {
                    lists.resize(tag as usize + 1, vec![ANY]);
                }
                lists[tag as usize].push(number as u32);
            }
        }
        self.of_tag = lists.iter().map(|list| self.class(list)).collect();
    }

    /// The number of this set's selector, which is new if nobody named the set before. Cost: compares
    /// the set, unless it is a run of tags; if it is new, gives each of its tags another class.
    pub(super) fn add(&mut self, set: &TagSet) -> u32 {
        let (number, is_new) = self.intern(set);
        if is_new {
            self.reclassify(number);
        }
        let uses = &mut self.uses[number as usize];
        self.unused -= usize::from(!is_new && number != ANY && *uses == 0);
        *uses += 1;
        number
    }

    /// One rule less names a selector.
    pub(super) fn release(&mut self, number: u32) {
        let uses = &mut self.uses[number as usize];
        *uses -= 1;
        self.unused += usize::from(number != ANY && *uses == 0);
    }

    /// Whether more is of no use than is.
    pub(super) fn is_untidy(&self) -> bool {
        2 * self.unused > self.sets.len() + Self::SLACK
            || self.classes.len() > 2 * self.of_tag.len() + 1 + Self::SLACK
    }

    /// Forgets what is of no use. Returns the new number of each selector that some rule names.
    pub(super) fn tidy(&mut self) -> Vec<u32> {
        let mut numbers = vec![ANY; self.sets.len()];
        let (sets, uses) = (std::mem::take(&mut self.sets), std::mem::take(&mut self.uses));
        self.by_set.clear();
        for ((set, uses), number) in sets.into_iter().zip(uses).zip(&mut numbers) {
            // The first, of all tags, stays the first.
            if uses > 0 || self.sets.is_empty() {
                *number = self.sets.len() as u32;
                self.uses.push(uses);
                self.push(set);
            }
        }
        self.unused = 0;
        self.classify();
        numbers
    }

    /// Every tag of a new selector moves to the class that has it too.
    fn reclassify(&mut self, number: u32) {
        let set = std::mem::take(&mut self.sets[number as usize]);
        let mut moved: HashMap<u32, u32> = HashMap::new();
        for &Tag(tag) in &set {
            let before = self.of(Tag(tag));
            let after = *moved.entry(before).or_insert_with(|| {
                let mut list = self.classes[before as usize].to_vec();
                list.push(number);
                self.class(&list)
            });
            if self.of_tag.len() <= tag as usize {
                self.of_tag.resize(tag as usize + 1, Self::OTHERS);
            }
            self.of_tag[tag as usize] = after;
        }
        self.sets[number as usize] = set;
    }

    /// The number of this set's selector, and whether it is new.
    fn intern(&mut self, set: &TagSet) -> (u32, bool) {
        let TagSet::Only(tags) = set else { return (ANY, false) };
        let Self { sets, by_set, .. } = self;
        let known = by_set.find(hash(tags), |&number| is_same(&sets[number as usize], tags));
        if let Some(&number) = known {
            return (number, false);
        }
        let number = sets.len() as u32;
        self.uses.push(0);
        self.push(tags.clone().into_boxed_slice());
        (number, true)
    }

    /// Adds a selector, by its tags.
    fn push(&mut self, tags: Box<[Tag]>) {
        let Self { sets, by_set, .. } = self;
        let number = sets.len() as u32;
        let is_any = number == ANY;
        sets.push(tags);
        if !is_any {
            let hash_of = |number: u32| hash(&sets[number as usize]);
            by_set.insert_unique(hash_of(number), number, |&number| hash_of(number));
        }
    }

    /// The class of these selectors.
    fn class(&mut self, selectors: &[u32]) -> u32 {
        if let Some(&class) = self.by_selectors.get(selectors) {
            return class;
        }
        let class = self.classes.len() as u32;
        self.classes.push(selectors.into());
        self.by_selectors.insert(selectors.into(), class);
        class
    }

    /// The class of a tag. Cost: one array read.
    #[inline]
    pub(super) fn of(&self, tag: Tag) -> u32 {
        self.of_tag.get(tag.0 as usize).copied().unwrap_or(Self::OTHERS)
    }

    /// The selectors of a class, ascending.
    pub(super) fn in_class(&self, class: u32) -> &[u32] {
        &self.classes[class as usize]
    }

    /// Whether a selector has this tag.
    pub(super) fn has(&self, selector: u32, tag: Tag) -> bool {
        self.in_class(self.of(tag)).binary_search(&selector).is_ok()
    }

    /// Bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        let sets: usize = self.sets.iter().map(|set| size_of_val(&**set)).sum();
        let classes: usize = self.classes.iter().map(|class| size_of_val(&**class)).sum();
        let list = size_of::<Box<[u32]>>();
        sets + self.sets.capacity() * list
            + self.uses.capacity() * size_of::<u32>()
            + self.by_set.capacity() * size_of::<u32>()
            + 2 * (classes + self.classes.capacity() * list)
            + self.of_tag.capacity() * size_of::<u32>()
    }
}

/// A hash of a set's size and a few of its tags, so that a long one is not read.
fn hash(set: &[Tag]) -> u64 {
    let spread = |sum: u64, at: usize| {
        let tag = set.get(at).map_or(0, |tag| u64::from(tag.0) + 1);
        (sum ^ tag).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
    };
    let last = set.len().wrapping_sub(1);
    [0, 1, last / 3, last / 2, last].into_iter().fold(set.len() as u64, spread)
}

/// Whether two sets are equal. Tags are sorted and not repeated, so as many tags as there are between
/// the first and the last are all of these: of a run, as the tags under a prefix are, no more is read.
fn is_same(one: &[Tag], other: &[Tag]) -> bool {
    let (Some(first), Some(last)) = (one.first(), one.last()) else { return other.is_empty() };
    if one.len() != other.len() || other.first() != Some(first) || other.last() != Some(last) {
        return false;
    }
    let is_run = (last.0 - first.0) as usize == one.len() - 1;
    is_run || one == other
}
