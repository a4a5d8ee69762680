//! What a picture is made of: cards with text, groups of cards, lines, and SVG text with nothing in it that
//! XML would take for markup.

use std::fmt::Write as _;

/// The width of a monospaced letter at the size in use, in pixels.
const LETTER: f64 = 6.7;
const LINE: f64 = 14.0;
const PAD: f64 = 8.0;
const GUTTER: f64 = 18.0;
/// A longer text is cut; the whole of it is the card's tooltip.
const MAX_LETTERS: usize = 44;

/// How a line is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// Inside the mesh.
    Solid,
    /// To Peers.
    Dashed,
}

/// A few lines of text in a box.
#[derive(Debug)]
pub(crate) struct Card {
    lines: Vec<String>,
    width: f64,
    height: f64,
    x: f64,
    y: f64,
}

impl Card {
    /// A card of these lines, the first one in bold.
    pub fn new(lines: Vec<String>) -> Self {
        let letters = lines.iter().map(|line| cut(line).chars().count()).max().unwrap_or(0);
        let width = letters as f64 * LETTER + 2.0 * PAD;
        let height = lines.len() as f64 * LINE + 2.0 * PAD;
        Self { lines, width, height, x: 0.0, y: 0.0 }
    }

    fn draw(&self, canvas: &mut Canvas, class: &str) {
        let o = &mut canvas.boxes;
        let (x, y, w, h) = (self.x, self.y, self.width, self.height);
        // Writing to a String does not fail; so for all of this file.
        let _ = write!(o, "<g class=\"{class}\"><title>{}</title>", escaped(&self.lines.join("\n")));
        let _ = write!(o, "<rect x=\"{x:.0}\" y=\"{y:.0}\" width=\"{w:.0}\" height=\"{h:.0}\" rx=\"6\"/>");
        for (i, line) in self.lines.iter().enumerate() {
            let weight = if i == 0 { " font-weight=\"bold\"" } else { "" };
            let y = y + PAD + LINE * (i as f64 + 0.8);
            let x = x + w / 2.0;
            let _ = write!(o, "<text x=\"{x:.0}\" y=\"{y:.0}\"{weight}>{}</text>", escaped(&cut(line)));
        }
        o.push_str("</g>\n");
    }
}

/// Cards in a frame. With `tree`, the first card is above the others and joined to them by lines.
#[derive(Debug)]
pub(crate) struct Group {
    label: String,
    pub cards: Vec<Card>,
    tree: Option<Style>,
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

const HEADER: f64 = 26.0;

impl Group {
    /// A group with this title, its cards in a grid.
    pub fn new(label: String, mut cards: Vec<Card>, tree: Option<Style>) -> Self {
        let head = usize::from(tree.is_some()).min(cards.len());
        let rest = cards.len() - head;
        let columns = if tree.is_some() {
            ((rest as f64 * 0.5).sqrt().ceil() as usize).max(1)
        } else {
            (rest.min(6)).max((rest as f64 * 2.0).sqrt().ceil() as usize).max(1)
        };
        let width = cards.iter().map(|c| c.width).fold(0.0, f64::max);
        let height = cards[head..].iter().map(|c| c.height).fold(0.0, f64::max);
        for card in &mut cards {
            card.width = width;
        }
        for card in &mut cards[head..] {
            card.height = height;
        }
        let used = columns.min(rest).max(1) as f64;
        let label_width = cut(&label).chars().count() as f64 * LETTER + 2.0 * PAD;
        let grid = used * (width + GUTTER);
        let group_width = (grid + GUTTER).max(label_width);
        let first = (group_width - width) / 2.0;
        let mut y = HEADER;
        if let Some(card) = cards[..head].first_mut() {
            (card.x, card.y) = (first, y);
            y += card.height + GUTTER;
        }
        let left = (group_width - grid + GUTTER) / 2.0;
        for (i, card) in cards[head..].iter_mut().enumerate() {
            card.x = left + (i % columns) as f64 * (width + GUTTER);
            card.y = y + (i / columns) as f64 * (height + GUTTER);
        }
        let group_height = y + rest.div_ceil(columns) as f64 * (height + GUTTER);
        Self { label, cards, tree, x: 0.0, y: 0.0, width: group_width, height: group_height.max(HEADER) }
    }

    /// Moves the group.
    pub fn place(&mut self, x: f64, y: f64) {
        for card in &mut self.cards {
            card.x += x - self.x;
            card.y += y - self.y;
        }
        (self.x, self.y) = (x, y);
    }

    /// The middle of the first card's upper edge.
    pub fn head(&self) -> (f64, f64) {
        self.cards.first().map_or((self.x, self.y), |c| (c.x + c.width / 2.0, c.y))
    }

    /// The middle of the first card.
    pub fn lead(&self) -> (f64, f64) {
        self.cards.first().map_or((self.x, self.y), |c| (c.x + c.width / 2.0, c.y + c.height / 2.0))
    }

    /// The middles of all cards.
    pub fn middles(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.cards.iter().map(|c| (c.x + c.width / 2.0, c.y + c.height / 2.0))
    }

    /// The middles of the lower edges of all cards.
    pub fn feet(&self) -> impl Iterator<Item = (f64, f64)> + '_ {
        self.cards.iter().map(|c| (c.x + c.width / 2.0, c.y + c.height))
    }

    /// Draws frame, title, cards, and the lines from the first card to the others.
    pub fn draw(&self, canvas: &mut Canvas) {
        canvas.grow(self.x + self.width, self.y + self.height);
        let (x, y, w, h) = (self.x, self.y, self.width, self.height);
        let o = &mut canvas.frames;
        let _ = writeln!(
            o,
            "<rect class=\"frame\" x=\"{x:.0}\" y=\"{y:.0}\" width=\"{w:.0}\" height=\"{h:.0}\" rx=\"10\"/>"
        );
        let _ = writeln!(
            &mut canvas.boxes,
            "<text class=\"label\" x=\"{:.0}\" y=\"{:.0}\">{}</text>",
            x + 10.0,
            y + 17.0,
            escaped(&cut(&self.label))
        );
        if let (Some(style), Some((first, rest))) = (self.tree, self.cards.split_first()) {
            self.draw_tree(canvas, style, first, rest);
        }
        for (i, card) in self.cards.iter().enumerate() {
            let class = match (self.tree, i) {
                (Some(_), 0) => "leader",
                (Some(_), _) => "node",
                (None, _) => "peer",
            };
            card.draw(canvas, class);
        }
    }

    /// One line down from the first card, one along the grid, one down beside each column, and a short one to
    /// each card.
    fn draw_tree(&self, canvas: &mut Canvas, style: Style, first: &Card, rest: &[Card]) {
        let Some(top) = rest.first() else { return };
        let bus = top.y - GUTTER / 2.0;
        let beside = |card: &Card| card.x - GUTTER / 2.0;
        let middle = first.x + first.width / 2.0;
        canvas.line((middle, first.y + first.height), (middle, bus), style);
        let columns = rest.iter().take_while(|card| card.y == top.y).count().max(1);
        let (mut from, mut to) = (middle, middle);
        for column in rest.iter().take(columns) {
            from = from.min(beside(column));
            to = to.max(beside(column));
        }
        canvas.line((from, bus), (to, bus), style);
        for card in rest.iter().rev().take(columns) {
            canvas.line((beside(card), bus), (beside(card), card.y + card.height / 2.0), style);
        }
        for card in rest {
            let y = card.y + card.height / 2.0;
            canvas.line((beside(card), y), (card.x, y), style);
        }
    }
}

/// A picture in the making: frames below, lines above them, cards on top.
#[derive(Debug, Default)]
pub(crate) struct Canvas {
    frames: String,
    lines: String,
    boxes: String,
    width: f64,
    height: f64,
}

impl Canvas {
    fn grow(&mut self, x: f64, y: f64) {
        self.width = self.width.max(x);
        self.height = self.height.max(y);
    }

    /// A straight line.
    pub fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), style: Style) {
        let class = class(style);
        let _ = writeln!(self.lines, "<path class=\"{class}\" d=\"M{x1:.0} {y1:.0}L{x2:.0} {y2:.0}\"/>");
    }

    /// A line that bows upwards.
    pub fn arc(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), rise: f64, style: Style) {
        let (class, x, y) = (class(style), f64::midpoint(x1, x2), y1.min(y2) - rise);
        let d = format!("M{x1:.0} {y1:.0}Q{x:.0} {y:.0} {x2:.0} {y2:.0}");
        let _ = writeln!(self.lines, "<path class=\"{class}\" d=\"{d}\"/>");
    }

    /// A word beside a line.
    pub fn note(&mut self, x: f64, y: f64, text: &str) {
        let _ =
            writeln!(self.boxes, "<text class=\"note\" x=\"{x:.0}\" y=\"{y:.0}\">{}</text>", escaped(text));
        self.grow(x + text.chars().count() as f64 * LETTER, y);
    }

    /// A point in which lines meet that stand for many.
    pub fn hub(&mut self, (x, y): (f64, f64), text: &str) {
        let _ = writeln!(self.boxes, "<circle class=\"hub\" cx=\"{x:.0}\" cy=\"{y:.0}\" r=\"7\"/>");
        self.note(x + 12.0, y + 4.0, text);
    }

    /// The picture with this title.
    pub fn finish(mut self, title: &str) -> String {
        let title = escaped(title);
        self.grow(title.len() as f64 * LETTER * 1.3 + 40.0, 80.0);
        let (width, height) = (self.width + 40.0, self.height + 40.0);
        let style = "text{font:11px monospace;text-anchor:middle;fill:#1c2733}\
            .title{font-size:15px;font-weight:bold;text-anchor:start}\
            .label,.note{text-anchor:start;fill:#4a5a6a;stroke:#f4f7fa;stroke-width:3;paint-order:stroke}.label{font-weight:bold}\
            .frame{fill:#f4f7fa;stroke:#9fb0c0;stroke-dasharray:5 4}\
            .leader rect{fill:#ffe9b8;stroke:#c78a00;stroke-width:2}.node rect{fill:#fff;stroke:#6c8196}\
            .peer rect{fill:#e3f3e6;stroke:#3e8e52}.hub{fill:#2b6cb0}\
            path{fill:none;stroke:#2b6cb0;stroke-width:1.4}.dashed{stroke:#3e8e52;stroke-dasharray:5 4}";
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\">\n<style>{style}</style>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
             <text class=\"title\" x=\"20\" y=\"28\">{title}</text>\n{}{}{}</svg>\n",
            self.frames, self.lines, self.boxes
        )
    }
}

fn class(style: Style) -> &'static str {
    match style {
        Style::Solid => "solid",
        Style::Dashed => "dashed",
    }
}

/// The first letters of a text.
fn cut(text: &str) -> String {
    if text.chars().count() <= MAX_LETTERS {
        return text.to_owned();
    }
    text.chars().take(MAX_LETTERS - 1).chain(['…']).collect()
}

/// A text as XML: markup escaped, what XML has no place for replaced.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\n' => out.push('\n'),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}
